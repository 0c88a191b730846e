# SPDX-License-Identifier: Apache-2.0
"""What the engine tests share: a random bundle, pictures, and a reference model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from PIL import Image

from tests.places import ROOT
from vllm_sauce.bundle import Bundle
from vllm_sauce.client import parse_request
from vllm_sauce.config import SauceConfig
from vllm_sauce.plugin.compat import vllm_version
from vllm_sauce.unlearning.mask import Mask, resolve_mask
from vllm_sauce.unlearning.slots import site_rows
from vllm_sauce_kernels.masked_edit import masked_edit_ref

MODEL = ROOT / "examples/tiny/model"
LAYER = "decoder.1"
LOGPROBS = 5

LONG = (
    "is there a dog in the picture ? what is its colour ? what is it made of ? "
    "is there a cat in the picture ? what is the material ? "
) * 3


def scale_out() -> list[str]:
    """Return the server's option that adds routes, where this vLLM has it."""
    new = Version(vllm_version()) >= Version("0.30")
    return ["--enable-scale-out"] if new else []


def picture(seed: int) -> Image.Image:
    """Return a picture of blocks in random colours, the size sauce-tiny sees."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


@dataclass(frozen=True)
class Ask:
    """One request of a test: a picture, a question, what to forget."""

    image: int | None
    question: str
    forget: tuple[str, ...] = ()
    strength: float = 1.0
    max_tokens: int = 6

    @property
    def text(self) -> str:
        """The prompt in sauce-tiny's chat form."""
        image = "" if self.image is None else "<image>\n"
        return f"USER: {image}{self.question} ASSISTANT:"

    def prompt(self) -> dict[str, Any]:
        """The prompt as ``LLM.generate`` takes it."""
        if self.image is None:
            return {"prompt": self.text}
        return {
            "prompt": self.text,
            "multi_modal_data": {"image": picture(self.image)},
        }

    def params(self) -> Any:
        """Greedy sampling parameters that return log-probabilities."""
        from vllm import SamplingParams

        import vllm_sauce

        extra = (
            vllm_sauce.forget(*self.forget, strength=self.strength)
            if self.forget
            else None
        )
        return SamplingParams(
            temperature=0.0,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            logprobs=LOGPROBS,
            extra_args=extra,
        )


@dataclass(frozen=True)
class Reply:
    """Tokens and, for each, the log-probabilities of the likeliest ones."""

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[tuple[int, float], ...], ...]
    cached: int

    def same(self, other: Reply) -> bool:
        """Tell whether two replies are equal to the last bit."""
        return self.tokens == other.tokens and self.logprobs == other.logprobs

    def close(self, other: Reply, tolerance: float = 2e-4) -> bool:
        """Tell whether two replies agree up to the order of floating-point sums."""
        if self.tokens != other.tokens:
            return False
        for mine, theirs in zip(self.logprobs, other.logprobs, strict=True):
            known = dict(theirs)
            for token, value in mine:
                if token in known and abs(known[token] - value) > tolerance:
                    return False
        return True


def reply_of(output: Any) -> Reply:
    """Read a vLLM output."""
    first = output.outputs[0]
    return Reply(
        tokens=tuple(first.token_ids),
        logprobs=tuple(
            tuple(sorted((token, entry.logprob) for token, entry in step.items()))
            for step in first.logprobs
        ),
        cached=output.num_cached_tokens or 0,
    )


def run(llm: Any, asks: Sequence[Ask]) -> list[Reply]:
    """Send requests as one batch."""
    outputs = llm.generate(
        [ask.prompt() for ask in asks],
        [ask.params() for ask in asks],
        use_tqdm=False,
    )
    return [reply_of(output) for output in outputs]


def cold(llm: Any) -> None:
    """Empty the prefix cache and the encoder cache."""
    assert llm.reset_prefix_cache()
    llm.llm_engine.engine_core.reset_encoder_cache()


def runner_of(llm: Any) -> Any:
    """Return the model runner of an engine that lives in this process."""
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


class ReferenceModel:
    """sauce-tiny in transformers, edited by the kernels' reference: the oracle."""

    def __init__(self, model_dir: Path, bundle: Bundle) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self.model = LlavaForConditionalGeneration.from_pretrained(
            model_dir, dtype=torch.float32
        ).eval()
        self.processor = AutoProcessor.from_pretrained(model_dir)
        self.bundle = bundle

    def mask(self, ask: Ask) -> Mask | None:
        """Resolve what a request asks to forget."""
        import vllm_sauce

        if not ask.forget:
            return None
        asked = parse_request(vllm_sauce.forget(*ask.forget, strength=ask.strength))
        catalogue, digest = self.bundle.catalogue, self.bundle.digest
        return resolve_mask(asked, catalogue, digest, SauceConfig(bundle="unused"))

    def _edit(self, x: torch.Tensor, mask: Mask, site: str) -> torch.Tensor:
        weights = self.bundle.sites[site].weights
        rows = site_rows(mask, self.bundle.catalogue, site)
        if not rows.latents:
            return x
        index = torch.tensor(rows.latents)
        flat = x.reshape(-1, x.shape[-1]).clone()
        threshold = (
            torch.zeros(weights.W_enc.shape[1])
            if weights.threshold is None
            else weights.threshold
        )
        b_enc = weights.b_enc
        if weights.apply_b_dec_to_input:
            b_enc = b_enc - weights.b_dec @ weights.W_enc
        masked_edit_ref(
            flat,
            None,
            torch.zeros(len(flat), dtype=torch.int32),
            torch.arange(len(index), dtype=torch.int32)[None],
            torch.tensor([rows.scale]),
            torch.tensor([rows.shift]),
            torch.maximum(torch.tensor(rows.gate), threshold[index])[None],
            torch.tensor([len(index)], dtype=torch.int32),
            weights.W_enc.T[index].contiguous(),
            weights.W_dec[index].contiguous(),
            b_enc[index].contiguous(),
            torch.zeros(1, dtype=torch.int64),
        )
        return flat.view_as(x)

    def _edit_kinds(
        self, x: torch.Tensor, mask: Mask, site: str, kinds: list[str]
    ) -> torch.Tensor:
        """Edit each kind of token by the part of the mask that acts on it."""
        x = x.clone()
        for kind in set(kinds):
            part = mask.at_tokens(self.bundle.catalogue, site, kind)
            at = torch.tensor([one == kind for one in kinds])
            if part is not None:
                x[:, at] = self._edit(x[:, at], part, site)
        return x

    def _edit_output(
        self, _: Any, __: Any, output: Any, mask: Mask, site: str, kinds: list[str]
    ) -> Any:
        if isinstance(output, tuple):
            return (self._edit_kinds(output[0], mask, site, kinds), *output[1:])
        return self._edit_kinds(output, mask, site, kinds)

    def _kinds(self, ids: torch.Tensor, prompt_len: int) -> list[str]:
        picture = self.model.config.image_token_id
        kinds = [
            "generated" if at >= prompt_len else "image" if one == picture else "prompt"
            for at, one in enumerate(ids[0].tolist())
        ]
        return ["sink", *kinds[1:]]

    @torch.inference_mode()
    def reply(self, ask: Ask) -> Reply:
        """Generate greedily without any cache, the edit in place."""
        images = None if ask.image is None else [picture(ask.image)]
        inputs = self.processor(text=ask.text, images=images, return_tensors="pt")
        mask = self.mask(ask)
        kinds: list[str] = []
        hooks = [] if mask is None else self._hooks(mask, kinds)
        tokens: list[int] = []
        logprobs: list[tuple[tuple[int, float], ...]] = []
        ids = inputs["input_ids"]
        extra = {"pixel_values": inputs["pixel_values"]} if images else {}
        for number in range(ask.max_tokens):
            kinds[:] = self._kinds(ids, ids.shape[1] - number)
            logits = self.model(input_ids=ids, use_cache=False, **extra).logits[0, -1]
            step = torch.log_softmax(logits.float(), -1)
            top = step.topk(LOGPROBS)
            tokens.append(int(top.indices[0]))
            logprobs.append(
                tuple(
                    sorted(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                )
            )
            ids = torch.cat([ids, top.indices[:1][None]], dim=1)
        for hook in hooks:
            hook.remove()
        return Reply(tuple(tokens), tuple(logprobs), 0)

    def _hooks(self, mask: Mask, kinds: list[str]) -> list[Any]:
        """Hook the edit in; ``kinds`` are those of the tokens of a pass."""
        inner = self.model.model
        hooks = []
        if "vision" in self.bundle.sites:
            hooks.append(
                inner.multi_modal_projector.register_forward_pre_hook(
                    lambda _, args: (self._edit(args[0], mask, "vision"), *args[1:])
                )
            )
        for site in self.bundle.sites:
            if site != "vision":
                layer = inner.language_model.layers[int(site.split(".")[1])]
                edit = partial(self._edit_output, mask=mask, site=site, kinds=kinds)
                hooks.append(layer.register_forward_hook(edit))
        return hooks


def unit_rows(rng: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Return random rows of length 1."""
    random = torch.randn(rows, columns, generator=rng)
    return random / random.norm(dim=1, keepdim=True) * math.sqrt(1.0)
