# SPDX-License-Identifier: Apache-2.0
"""Every class of decoder layers in the table: edited as transformers would be."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.plugin.models.compared import (
    Asked,
    Reference,
    also_compiled,
    answers,
    largest,
    layers_of,
    record,
    start,
    write_bundle,
)
from tests.plugin.models.text_models import TEXT_MODELS, write_text_model
from vllm_sauce.models.architectures import LAYERS

PROMPTS = ("is there a dog ?", "what is its colour ? what is it made of ? " * 4)
WINDOWED = {"gemma3": ("what is its colour ? what is it made of ? " * 8,)}
"""Prompts longer than a layer's window. Not Cohere 2: vLLM's plain answers differ there
from transformers' by 1e-3."""
TOKENS = 4
COMPILED_OTHERWISE = {"glm4_moe_lite"}
"""vLLM's plain answers, compiled on a CPU, differ from transformers' by 2.1."""
EACH_FORM = ("cohere", "granite")
"""The first of two tensors, and a single one. Of transformers' own layers a process can
serve a model once."""
LOOSE = {"gemma2", "bloom"}
"""Differ from transformers on CPUs by more, unedited too."""


def test_every_class_of_the_table_is_tried() -> None:
    tried = {
        layer if row.native else f"transformers.{layer}": row.form
        for row in TEXT_MODELS.values()
        for layer in row.layers
    }
    by_pictures = {
        name for name in LAYERS if name.startswith(("Qwen3VL", "AriaText", "Mllama"))
    }
    assert tried.items() <= LAYERS.items()
    assert LAYERS.keys() - tried == by_pictures | {"Qwen3_5DecoderLayer"}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "compiled"), also_compiled(TEXT_MODELS, ("gemma3", *EACH_FORM))
)
def test_an_edit_behind_a_layer_is_as_in_transformers(
    name: str, compiled: bool, tmp_path: Path, model_dir: Path
) -> None:
    """Plain and edited prompts in one batch, and what is written to them."""
    if compiled and name in COMPILED_OTHERWISE:
        pytest.skip("what vLLM compiles of it for CPUs answers otherwise, unedited")
    model = write_text_model(tmp_path, name, model_dir)
    bundle = write_bundle(tmp_path / "bundle", model)
    reference = Reference(model, bundle)
    asked = [
        Asked(prompt, forget=forget)
        for prompt in (*PROMPTS, *WINDOWED.get(name, ()))
        for forget in ((), ("read",))
    ]
    # Before the engine: serving transformers' own layers changes their classes.
    unedited = [reference.logprobs(Asked(one.prompt)) for one in asked]
    wanted = [reference.answer(one, TOKENS) for one in asked]
    llm = start(model, bundle, compiled=compiled, dtype="float32")
    row = TEXT_MODELS[name]
    before = "" if row.native else "transformers."
    assert layers_of(llm) == sorted(f"{before}{layer}" for layer in row.layers)
    worst, least = 0.0, float("inf")
    for one, (tokens, steps), (right, told), plain in zip(
        asked, answers(llm, asked, TOKENS), wanted, unedited, strict=True
    ):
        assert tokens == right
        worst = max(worst, *map(largest, steps, told))
        if one.forget:
            least = min(least, largest(steps[0], plain))
    record(llm, name, reference, worst, least)
    assert worst < (2e-3 if name in LOOSE else 2e-4)
    assert least > 20 * worst
    del llm
    gc.collect()
