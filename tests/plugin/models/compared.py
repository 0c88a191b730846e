# SPDX-License-Identifier: Apache-2.0
"""A random model and a random bundle of all its sites, in vLLM and in transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vllm_sauce
from tests.plugin.conftest import RUNNER, engine
from tests.plugin.models import crossing
from tests.plugin.random_bundle import random_sae
from tests.plugin.support import runner_of
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit, is_vision
from vllm_sauce.models.architectures import vision_row
from vllm_sauce.models.site_edits import site_actions, sparing_sink
from vllm_sauce.models.site_hooks import site_hook
from vllm_sauce.plugin.sites.modules import table_name
from vllm_sauce.plugin.worker.runtime import runtime_of

COMPILED = os.environ.get("SAUCE_TEST_MODE") == "compiled"
"""Whether models are compiled, and not run eagerly."""
RECORD = os.environ.get("SAUCE_TEST_RECORD")
"""A file that takes what was compared, a line of JSON each; docs/models.md reads it."""
LOGPROBS = 20


@dataclass(frozen=True)
class Asked:
    """A prompt, with a picture or without, and what to forget."""

    prompt: str
    picture: Any = None
    forget: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """Return what ``LLM.generate`` takes."""
        shown = {"multi_modal_data": {"image": self.picture}} if self.picture else {}
        return {"prompt": self.prompt, **shown}


def picture(seed: int, width: int = 112, height: int = 84) -> Any:
    """Return blocks of random colours."""
    shape = (max(height // 28, 2), max(width // 28, 2), 3)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def widths(config: Any) -> dict[str, int]:
    """Return d_model of a model's sites: of a text model all layers but the first."""
    text = config.get_text_config()
    d_model, layers = int(text.hidden_size), range(1, text.num_hidden_layers)
    if not hasattr(config, "vision_config"):
        return {f"decoder.{i}": d_model for i in layers}
    row = vision_row(config)
    return {
        "decoder.1": d_model,
        **dict.fromkeys(row.modules(config), row.width(config)),
    }


def write_bundle(folder: Path, model_dir: Path, across: str | None = None) -> Path:
    """Write a bundle: "seen" at all vision sites, "read" behind layers, "both".

    And "across" behind one more layer, if one is given.
    """
    from transformers import AutoConfig

    wide = widths(AutoConfig.from_pretrained(model_dir))
    more = {} if across is None else {across: wide["decoder.1"]}
    edit = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
    places = {
        "seen": [site for site in wide if is_vision(site)],
        "read": [site for site in wide if not is_vision(site)],
        "both": list(wide),
        "across": list(more),
    }
    wide |= more
    concepts = [
        Concept(name=name, domain="random", edits=dict.fromkeys(sites, edit))
        for name, sites in places.items()
        if sites
    ]
    saes = {
        site: random_sae(i, d_model) for i, (site, d_model) in enumerate(wide.items())
    }
    Bundle.build(fingerprint_model(model_dir), saes, Catalogue(concepts)).save(folder)
    return folder


def also_compiled(names: Iterable[str], some: Iterable[str]) -> list[Any]:
    """Return names, each in the mode that the environment says; some compiled, too.

    As parameters "name" and "compiled".
    """
    more = [] if COMPILED else some
    return [
        *(pytest.param(name, COMPILED, id=name) for name in names),
        *(pytest.param(name, True, id=f"{name}-compiled") for name in more),
    ]


def start(
    model_dir: Path, bundle_dir: Path, *, compiled: bool = COMPILED, **options: Any
) -> Any:
    """Start an engine of the runner and mode that the environment names."""
    from vllm.distributed import cleanup_dist_env_and_memory

    told = {
        "enforce_eager": not compiled,
        # vLLM keeps states of Mamba 2 for it that its kernel for CPUs does not return.
        "enable_prefix_caching": False,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 2048,
        **options,
    }
    if RUNNER == "v2" and not torch.cuda.is_available():
        # Triton's interpreter multiplies bfloat16 as the integers that it keeps it in:
        # vLLM's other form of the same function, which its CPUs use.
        from vllm.model_executor.models import qwen3_vl

        qwen3_vl.HAS_TRITON = False
    # An engine of the session may be left here; its groups are of a dense model.
    cleanup_dist_env_and_memory()
    before = _graphs()
    llm = engine(model_dir, {"bundle": str(bundle_dir)}, **told)
    assert (_graphs() > before) == compiled
    return llm


def _graphs() -> int:
    """Return how many graphs were compiled, or read from vLLM's cache, until now."""
    from vllm.compilation.counter import compilation_counter

    seen = ("num_graphs_seen", "num_aot_compiles", "num_aot_artifacts_loaded")
    return sum(getattr(compilation_counter, name, 0) for name in seen)


Steps = list[dict[int, float]]
"""The likeliest tokens of each step, with their log-probabilities."""


def answers(
    llm: Any, asked: Sequence[Asked], tokens: int
) -> list[tuple[list[int], Steps]]:
    """Return what is written greedily to each prompt, all of them one batch."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=tokens,
            logprobs=LOGPROBS,
            ignore_eos=True,
            extra_args=vllm_sauce.forget(*one.forget) if one.forget else None,
        )
        for one in asked
    ]
    outputs = llm.generate([one.given() for one in asked], params, use_tqdm=False)
    found = [output.outputs[0] for output in outputs]
    return [
        (
            list(one.token_ids),
            [{t: e.logprob for t, e in step.items()} for step in one.logprobs],
        )
        for one in found
    ]


def logprobs(llm: Any, asked: Sequence[Asked]) -> Steps:
    """Return the likeliest next tokens of each prompt, all of them one batch."""
    return [steps[0] for _, steps in answers(llm, asked, 1)]


def write_template(model_dir: Path, word: str) -> None:
    """Let a chat of one message be its pictures and its text, without more."""
    (model_dir / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '" + word + " ' if part.type == 'image' else part.text }}"
        "{% endfor %}{% endfor %}"
    )


class Reference:
    """The same model in transformers, with the same edits on the same modules."""

    def __init__(
        self,
        model_dir: Path,
        bundle_dir: Path,
        dtype: str = "float32",
        token_type: int | None = None,
    ) -> None:
        import transformers

        self.bundle, self.token_type = Bundle.load(bundle_dir), token_type
        config = transformers.AutoConfig.from_pretrained(model_dir)
        shows = hasattr(config, "vision_config")
        auto = (
            transformers.AutoModelForImageTextToText
            if shows
            else transformers.AutoModelForCausalLM
        )
        loaded = auto.from_pretrained(model_dir, dtype=getattr(torch, dtype))
        self.model: Any = loaded.eval()
        reader = transformers.AutoProcessor if shows else transformers.AutoTokenizer
        self.processor: Any = reader.from_pretrained(model_dir)

    @cached_property
    def saes(self) -> Mapping[str, Any]:
        """By site."""
        return {site: held.weights for site, held in self.bundle.sites.items()}

    def inputs(self, asked: Asked, written: Sequence[int] = ()) -> dict[str, Any]:
        """Return what the model takes of a prompt, and of what is written to it."""
        if self.model.config.model_type == "mllama":
            ids = self.processor.tokenizer(asked.prompt)["input_ids"]
            return crossing.inputs(self.processor, [*ids, *written], asked.picture)
        shown = {"images": [asked.picture]} if asked.picture else {}
        made = dict(self.processor(text=asked.prompt, return_tensors="pt", **shown))
        made.pop("labels", None)
        if self.token_type is not None and "token_type_ids" in made:
            made["token_type_ids"].fill_(self.token_type)
        if written:
            more = torch.tensor([list(written)])
            made = {"input_ids": torch.cat([made["input_ids"], more], 1)}
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in made.items()
        }

    @torch.inference_mode()
    def activations(
        self, asked: Asked, sites: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Return what passes sites. Shapes: -> [num_tokens, d_model] by site"""
        found: dict[str, list[torch.Tensor]] = {}

        def keep(site: str, x: torch.Tensor) -> torch.Tensor:
            # Of some towers a tile at a time.
            found.setdefault(site, []).append(x.flatten(0, -2).clone())
            return x

        with ExitStack() as hooks:
            for site in sites:
                hooks.enter_context(site_hook(self.model, site, partial(keep, site)))
            self.model(**self.inputs(asked), use_cache=False)
        return {site: torch.cat(parts) for site, parts in found.items()}

    def answer(self, asked: Asked, tokens: int) -> tuple[list[int], torch.Tensor]:
        """Return what is written greedily, and the log-probabilities of each step.

        Without a cache; only prompts without pictures are gone on with.

        Shapes: -> [tokens], [tokens, vocabulary]
        """
        written: list[int] = []
        steps = [self.logprobs(asked)]
        while len(written) < tokens - 1:
            written.append(int(steps[-1].argmax()))
            steps.append(self.logprobs(asked, written))
        return [*written, int(steps[-1].argmax())], torch.stack(steps)

    @torch.inference_mode()
    def logprobs(self, asked: Asked, written: Sequence[int] = ()) -> torch.Tensor:
        """Return those of the token after a prompt and what is written to it.

        Shapes: -> [vocabulary]
        """
        with ExitStack() as hooks:
            for name in asked.forget:
                edits = self.bundle.catalogue.concept(name).edits
                for site, action in site_actions(self.saes, edits, 1.0).items():
                    hooks.enter_context(
                        site_hook(self.model, site, sparing_sink(action))
                    )
            logits = self.model(**self.inputs(asked, written), use_cache=False).logits
        return torch.log_softmax(logits[0, -1].float(), -1)


def largest(got: Mapping[int, float], wanted: torch.Tensor) -> float:
    """Return the largest difference among tokens that vLLM told of."""
    return max(abs(float(wanted[token]) - value) for token, value in got.items())


def layers_of(llm: Any) -> list[str]:
    """Return the classes of the layers that are edited, as the table has them."""
    edited = runtime_of(runner_of(llm).model)
    assert edited is not None
    classes = [type(layer).__mro__[1] for layer in edited.layers.values()]
    return sorted({table_name(cls) for cls in classes})


def record(
    llm: Any, name: str, reference: Reference, difference: float, moved: float
) -> None:
    """Note what was compared, if somebody wants to know."""
    if RECORD is None:
        return
    config = llm.llm_engine.vllm_config.model_config
    if config.is_encoder_decoder and not config.enforce_eager:
        return  # a step that encodes a picture runs past what was compiled
    line = {
        "model": name,
        "architecture": reference.bundle.fingerprint.architecture,
        "layers": layers_of(llm),
        "sites": list(reference.bundle.catalogue.sites()),
        "runner": RUNNER,
        "mode": "eager" if config.enforce_eager else "compiled",
        "dtype": str(reference.model.dtype).removeprefix("torch."),
        "difference": difference,
        "moved": moved,
    }
    with open(RECORD, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
