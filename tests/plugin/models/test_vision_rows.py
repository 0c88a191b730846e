# SPDX-License-Identifier: Apache-2.0
"""Every vision-language row of the table: edited as transformers would be."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugin.models.compared import (
    Asked,
    Reference,
    also_compiled,
    largest,
    logprobs,
    picture,
    record,
    start,
    write_bundle,
)
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.errors import CanaryError
from vllm_sauce.models.architectures import VISION_ROWS

pytestmark = pytest.mark.engine

SIZES = [(112, 84), (56, 112), (112, 84), (112, 112)]
MASKS: list[tuple[str, ...]] = [("seen",), (), ("both",), ("seen",)]
CLOSE = {"float32": 1e-3, "bfloat16": 0.1}


@pytest.mark.parametrize(
    ("name", "compiled"), also_compiled(VISION_MODELS, ["qwen3_vl"])
)
def test_a_mixed_batch_is_edited_as_in_transformers(
    name: str, compiled: bool, tmp_path: Path, model_dir: Path
) -> None:
    """Pictures of several sizes in one encoder run, under masks that alternate."""
    told = VISION_MODELS[name]
    model = write_vision_model(tmp_path / "model", name, model_dir)
    bundle = write_bundle(tmp_path / "bundle", model)
    reference = Reference(model, bundle, told.dtype, told.token_type)
    llm = start(
        model,
        bundle,
        compiled=compiled,
        dtype=told.dtype,
        limit_mm_per_prompt=told.limits,
    )
    sizes = [SIZES[-1]] * len(SIZES) if told.square else SIZES
    asked = [
        Asked(f"is there {told.word} a dog ?", picture(i, *size), mask)
        for i, (size, mask) in enumerate(zip(sizes, MASKS, strict=True))
    ]
    mixed = logprobs(llm, asked)
    plain = logprobs(llm, [Asked(one.prompt, one.picture) for one in asked])
    worst, least = 0.0, float("inf")
    for one, got, before in zip(asked, mixed, plain, strict=True):
        worst = max(worst, largest(got, reference.logprobs(one)))
        unedited = reference.logprobs(Asked(one.prompt, one.picture))
        worst = max(worst, largest(before, unedited))
        if one.forget:
            least = min(least, largest(got, unedited))
        else:
            assert got == before
    record(llm, name, reference, worst, least)
    assert worst < CLOSE[told.dtype]
    assert least > 20 * worst, "the edit moves more than the two differ by"
    del llm
    gc.collect()


def test_a_server_does_not_start_where_features_go_around(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the table wrong: a deepstack with one of its three ways cut."""
    known = VISION_ROWS["Qwen3VLForConditionalGeneration"]
    wrong = replace(known, num_branches=lambda config: 0)
    monkeypatch.setitem(VISION_ROWS, known.model, wrong)
    model = write_vision_model(tmp_path / "model", "qwen3_vl", model_dir)
    bundle = write_bundle(tmp_path / "bundle", model)
    with pytest.raises(CanaryError, match=r"67% of the numbers .* go around vision of"):
        start(
            model, bundle, dtype="float32", limit_mm_per_prompt={"image": 1, "video": 0}
        )
