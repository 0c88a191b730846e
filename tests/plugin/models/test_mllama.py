# SPDX-License-Identifier: Apache-2.0
"""Llama 3.2 Vision, which the plugin brings: it answers as transformers does."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.models import crossing
from tests.plugin.models.compared import (
    Asked,
    Reference,
    answers,
    largest,
    logprobs,
    picture,
    record,
    start,
    write_bundle,
)
from tests.plugin.models.vision_models import write_vision_model
from tests.plugin.support import runner_of
from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.models.site_edits import site_actions, sparing_sink
from vllm_sauce.models.site_hooks import site_hook

pytestmark = pytest.mark.engine

STEPS = 5
PROMPTS = 100
TOP = 20
SMALL: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 14,
}
# One tile, two side by side, two above each other, four.
SIZES = [(56, 56), (112, 56), (56, 112), (112, 112)]
HELD = {
    "language_model.model.": "model.language_model.",
    "vision_model.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "language_model.lm_head.": "lm_head.",
}
# A few of the index of meta-llama/Llama-3.2-11B-Vision-Instruct.
PUBLIC = {
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.2.cross_attn.k_norm.weight",
    "language_model.model.layers.2.cross_attn_attn_gate",
    "language_model.model.norm.weight",
    "multi_modal_projector.bias",
    "vision_model.class_embedding",
    "vision_model.gated_positional_embedding.tile_embedding.weight",
    "vision_model.global_transformer.layers.0.gate_attn",
    "vision_model.patch_embedding.weight",
    "vision_model.transformer.layers.0.self_attn.q_proj.weight",
}


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> tuple[Path, Path]:
    """A random model, and a bundle for it."""
    folder = tmp_path_factory.mktemp("mllama")
    model = write_vision_model(folder / "model", "mllama", model_dir)
    return model, write_bundle(folder / "bundle", model, "decoder.2")


@pytest.fixture(scope="module")
@starts_engine
def llm(files: tuple[Path, Path]) -> Iterator[Any]:
    """An engine to which nothing is told of what this model needs."""
    yield start(*files, limit_mm_per_prompt={"image": 1})


@pytest.fixture(scope="module")
def reference(files: tuple[Path, Path]) -> Reference:
    return Reference(*files)


def prompts(tokenizer: Any, count: int) -> list[tuple[list[int], Any]]:
    """Text only, a picture first, a picture behind some text; of 1, 2 and 4 tiles."""
    rng = np.random.default_rng(0)
    words = tokenizer.convert_tokens_to_ids(crossing.WORD)
    found: list[tuple[list[int], Any]] = []
    for i in range(count):
        ids = rng.integers(5, words, int(rng.integers(3, 24))).tolist()
        if i % 3 == 0:
            found.append((ids, None))
            continue
        at = 0 if i % 3 == 1 else int(rng.integers(1, len(ids) + 1))
        found.append(([*ids[:at], words, *ids[at:]], picture(i, *SIZES[i // 3 % 4])))
    return found


def given(ids: list[int], shown: Any) -> dict[str, Any]:
    data = {} if shown is None else {"multi_modal_data": {"image": shown}}
    return {"prompt_token_ids": ids, **data}


@torch.inference_mode()
def test_answers_are_those_of_transformers(llm: Any, reference: Reference) -> None:
    from vllm import SamplingParams

    asked = prompts(reference.processor.tokenizer, PROMPTS)
    params = SamplingParams(
        temperature=0, max_tokens=STEPS, logprobs=TOP, ignore_eos=True
    )
    outputs = llm.generate([given(*one) for one in asked], params, use_tqdm=False)
    worst = 0.0
    for (ids, shown), output in zip(asked, outputs, strict=True):
        answer = output.outputs[0]
        assert list(output.prompt_token_ids) == ids
        whole = [*ids, *answer.token_ids]
        logits = reference.model(
            **crossing.inputs(reference.processor, whole, shown), use_cache=False
        ).logits[0]
        wanted = torch.log_softmax(logits[len(ids) - 1 : -1].float(), -1)
        assert wanted.argmax(-1).tolist() == list(answer.token_ids)
        for step, told in enumerate(answer.logprobs):
            got = {token: entry.logprob for token, entry in told.items()}
            worst = max(worst, largest(got, wanted[step]))
    assert worst < 1e-4


def test_padding_tiles_are_seen_from_before_a_picture(
    llm: Any, reference: Reference
) -> None:
    """Or the test above would prove nothing of it: without, the answer is another."""
    ids, shown = prompts(reference.processor.tokenizer, 3)[2]
    made = crossing.inputs(reference.processor, ids, shown)
    with torch.inference_mode():
        right = reference.model(**made).logits[0, -1]
        # The keys that padding has are taken from all rows.
        mask = made["cross_attention_mask"]
        mask[:, :, :, : int(made["aspect_ratio_mask"].sum())] = 1
        wrong = reference.model(**made).logits[0, -1]
    assert float((right - wrong).abs().max()) > 1e-2


@pytest.mark.parametrize("site", ["seen", "read", "across", "both"])
def test_edits_of_a_mixed_batch(llm: Any, reference: Reference, site: str) -> None:
    masks: list[tuple[str, ...]] = [(site,), (), (site,), ("seen",), ()]
    word = crossing.WORD
    asked = [
        Asked(prompt, picture(i, *SIZES[i]) if word in prompt else None, mask)
        for i, (prompt, mask) in enumerate(
            zip(
                [
                    f"is there {word} a dog ?",
                    f"{word} what is its colour ?",
                    f"is it {word} red ?",
                    f"what is there ? {word} is it a cat ?",
                    "is there a dog ?",
                ],
                masks,
                strict=True,
            )
        )
    ]
    mixed = logprobs(llm, asked)
    plain = logprobs(llm, [Asked(one.prompt, one.picture) for one in asked])
    worst, least = 0.0, float("inf")
    for one, got, before in zip(asked, mixed, plain, strict=True):
        unedited = reference.logprobs(Asked(one.prompt, one.picture))
        assert largest(before, unedited) < 1e-4
        worst = max(worst, largest(got, reference.logprobs(one)))
        if one.forget:
            least = min(least, largest(got, unedited))
        else:
            assert got == before
    assert worst < 1e-3
    assert least > 20 * worst
    if site == "across":
        record(llm, "mllama across", reference, worst, least)


def test_text_alone_is_edited_behind_a_layer_of_cross_attention(
    llm: Any, reference: Reference
) -> None:
    """transformers passes the layer over: the stream behind is the one before it."""
    prompt = "what is its colour ?"
    edits = reference.bundle.catalogue.concept("across").edits
    (action,) = site_actions(reference.saes, edits, 1.0).values()
    with (
        torch.inference_mode(),
        site_hook(reference.model, "decoder.1", sparing_sink(action)),
    ):
        ids = reference.inputs(Asked(prompt))
        wanted = reference.model(**ids, use_cache=False).logits[0, -1]
    (got,) = logprobs(llm, [Asked(prompt, forget=("across",))])
    assert largest(got, torch.log_softmax(wanted, -1)) < 1e-4
    assert largest(got, reference.logprobs(Asked(prompt))) > 0.05


def test_answers_are_edited_to_their_end(llm: Any, reference: Reference) -> None:
    """Also without a picture in the batch, where vLLM runs what it compiled."""
    asked = [
        Asked(f"is there {crossing.WORD} a dog ?", picture(0, 56, 56), ("both",)),
        Asked("what is its colour ?", None, ("read",)),
        Asked("is there a cat ?"),
        Asked(f"{crossing.WORD} is it red ?", picture(1, 112, 56), ("across",)),
    ]
    for batch in (asked, asked[1:3]):
        for one, (tokens, steps) in zip(batch, answers(llm, batch, 4), strict=True):
            right, wanted = reference.answer(one, 4)
            assert tokens == right
            assert max(map(largest, steps, wanted)) < 1e-3


def test_a_preempted_request_keeps_its_picture(
    files: tuple[Path, Path], reference: Reference
) -> None:
    """It begins again beside new ones, in another order than the scheduler's."""
    from vllm import SamplingParams

    crowded = start(*files, **SMALL)
    preempted = 0
    scheduler = crowded.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal preempted
        preempted += 1
        return preempt(*args, **kwargs)

    scheduler._preempt_request = counting
    words = prompts(reference.processor.tokenizer, 60)
    asked = [one for one in words if one[1] is not None][:24]
    # Of many lengths, so that old ones come back when new ones begin.
    params = [
        SamplingParams(temperature=0, max_tokens=12 + 5 * (i % 7), ignore_eos=True)
        for i in range(len(asked))
    ]
    outputs = crowded.generate([given(*one) for one in asked], params, use_tqdm=False)
    assert preempted > 0
    for (ids, shown), output in zip(asked, outputs, strict=True):
        answer = output.outputs[0].token_ids
        made = crossing.inputs(reference.processor, [*ids, *answer], shown)
        with torch.inference_mode():
            logits = reference.model(**made, use_cache=False).logits[0]
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == list(answer)


def test_two_pictures_are_refused(llm: Any) -> None:
    two = f"{crossing.WORD} {crossing.WORD} is there a dog ?"
    for prompt, shown, why in (
        (two, [picture(0), picture(1)], "At most 1 image"),
        (two, picture(0), r"2 <\|image\|> and the request one picture"),
        ("is there a dog ?", picture(0), r"0 <\|image\|> and the request one picture"),
    ):
        with pytest.raises(Exception, match=why):
            llm.generate(
                {"prompt": prompt, "multi_modal_data": {"image": shown}},
                use_tqdm=False,
            )


def test_the_other_names_of_tensors_are_loaded(
    llm: Any, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """What transformers holds them by, where the file has Meta's names."""
    held, public = tmp_path / "held", load_file(files[0] / "model.safetensors")
    assert {name.partition(".")[0] for name in public} == {
        "language_model",
        "vision_model",
        "multi_modal_projector",
    }
    assert set(public) >= PUBLIC
    shutil.copytree(files[0], held)
    renamed = {
        next(b + n.removeprefix(a) for a, b in HELD.items() if n.startswith(a)): one
        for n, one in public.items()
    }
    save_file(renamed, held / "model.safetensors", metadata={"format": "pt"})
    other = start(held, write_bundle(tmp_path / "bundle", held))
    asked = [Asked(f"is there {crossing.WORD} a dog ?", picture(1, 112, 56))]
    (mine,), (theirs,) = logprobs(other, asked), logprobs(llm, asked)
    assert mine == pytest.approx(theirs, abs=1e-5)  # compiled anew
    del other
    gc.collect()
    with pytest.raises(ValueError, match=r"no module or parameter named 'layers.0.un"):
        runner_of(llm).model.load_weights(
            [("language_model.model.layers.0.unknown", torch.ones(1))]
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"hf_overrides": {"x": 1}}, "cannot be served with --hf-overrides"),
        ({"enable_prefix_caching": True}, "with --enable-prefix-caching"),
        ({"enable_chunked_prefill": True}, "with --enable-chunked-prefill"),
        ({"max_num_batched_tokens": 64}, "give at least 1024"),
    ],
)
def test_what_it_cannot_do_is_refused(
    files: tuple[Path, Path], options: dict[str, Any], why: str
) -> None:
    sauce = {"bundle": str(files[1])}
    with pytest.raises(UnsupportedFeatureError, match=why):
        engine(files[0], sauce, **{"enable_prefix_caching": None} | options)


def test_a_plain_engine_does_not_know_it(files: tuple[Path, Path]) -> None:
    """In a process where nobody asked for it."""
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins(); "
        "from vllm import ModelRegistry; "
        "print('MllamaForConditionalGeneration' in ModelRegistry.get_supported_archs())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == "False"
