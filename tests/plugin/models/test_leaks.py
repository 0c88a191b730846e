# SPDX-License-Identifier: Apache-2.0
"""What was cached under one mask reaches no other: several layers of a tower, tiles.

The tests of sauce-tiny ask more; these ask it where a picture passes many sites.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.models.compared import (
    Asked,
    Reference,
    largest,
    logprobs,
    picture,
    start,
    write_bundle,
)
from tests.plugin.models.text_models import write_text_model
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model

pytestmark = pytest.mark.engine

ORDER: list[tuple[str, ...]] = [(), ("seen",), (), ("both",), ("seen",), ("read",)]
"""Of the masks of one prompt, asked for one after the other, then all over again."""
LONG = "is there a dog ? what is its colour ? what is it made of ? " * 8


CACHED: dict[str, Any] = {"enable_prefix_caching": True, "max_num_batched_tokens": 160}


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next", "llava_pixtral", "mllama"])
def test_pictures_and_prefixes_of_one_mask_reach_no_other(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Both caches on, prompts longer than a step; transformers has no cache.

    A Llama 3.2 Vision has neither, but what its encoder left in the cross-attention's.
    """
    told = VISION_MODELS[name]
    model = write_vision_model(tmp_path / "model", name, model_dir)
    reference = Reference(model, write_bundle(tmp_path / "bundle", model), told.dtype)
    llm = start(
        model,
        tmp_path / "bundle",
        dtype=told.dtype,
        limit_mm_per_prompt=told.limits,
        **({} if name == "mllama" else CACHED),
    )
    shown = picture(1, 112, 84)
    asked = [Asked(f"{LONG} {told.word} a dog ?", shown, mask) for mask in ORDER]
    wanted = [reference.logprobs(one) for one in asked]
    for _ in range(2):
        for one, right in zip(asked, wanted, strict=True):
            (got,) = logprobs(llm, [one])
            assert largest(got, right) < 1e-3, one.forget
    together = logprobs(llm, asked)
    assert max(map(largest, together, wanted)) < 1e-3
    del llm
    gc.collect()


@pytest.mark.parametrize("name", ["lfm2", "cohere", "granite"])
def test_prefixes_of_texts_reach_no_other_mask(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Layers with a state, a stream that is the first tensor, and the only one."""
    model = write_text_model(tmp_path, name, model_dir)
    reference = Reference(model, write_bundle(tmp_path / "bundle", model))
    asked = [Asked(LONG, forget=mask) for mask in ((), ("read",), (), ("both",))]
    wanted = [reference.logprobs(one) for one in asked]
    llm = start(model, tmp_path / "bundle", dtype="float32", enable_prefix_caching=True)
    for _ in range(2):
        for one, right in zip(asked, wanted, strict=True):
            (got,) = logprobs(llm, [one])
            assert largest(got, right) < 2e-4, one.forget
    del llm
    gc.collect()
