# SPDX-License-Identifier: Apache-2.0
"""What stages read of models in transformers: each prompt alone, each token in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugin.models.compared import picture, write_template
from tests.plugin.models.text_models import write_text_model
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.models.loaded_model import LoadedModel

TEXTS = ("gpt2", "gpt_bigcode", "opt", "bloom", "llama", "mamba2", "falcon")
"""Positions that are learnt, turned, sloped, and none."""
PROMPTS = ("a dog", "is there a dog ? what is its colour ?", "is there a cat ?")
SIZES = ((112, 84), (56, 112), (112, 112))
CLOSE = 1e-3


def load(name: str, folder: Path, tokenizer: Path) -> tuple[LoadedModel, list[Sample]]:
    """Return a random model and prompts of several lengths, with pictures or none."""
    if name in VISION_MODELS:
        told = VISION_MODELS[name]
        write_vision_model(folder / "model", name, tokenizer)
        write_template(folder / "model", told.word)
        loaded = LoadedModel.load(folder / "model", "cpu")
        sizes = [SIZES[-1]] * len(SIZES) if told.square else SIZES
        shown: list[Any] = [folder / f"{i}.png" for i in range(len(sizes))]
        for i, size in enumerate(sizes):
            picture(i, *size).save(shown[i])
    else:
        model = write_text_model(folder, name, tokenizer)
        (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
        loaded = LoadedModel.load(model, "cpu")
        shown = [None] * len(PROMPTS)
    samples = [
        Sample(key="", prompt=prompt, picture=one and PictureFile(one))
        for prompt, one in zip(PROMPTS, shown, strict=True)
    ]
    return loaded, samples


@torch.inference_mode()
def logprobs(
    loaded: LoadedModel, samples: list[Sample], given: list[list[int]]
) -> Tensor:
    """Return those of each given token and of the next. Shapes: -> [rows, n, vocab]"""
    inputs = loaded.continued(loaded.inputs(samples), torch.tensor(given))
    keep = 1 + len(given[0])
    logits = loaded.model(**inputs, logits_to_keep=keep, use_cache=False).logits
    logs: Tensor = logits.float().log_softmax(-1)
    return logs


@pytest.mark.parametrize("name", [*TEXTS, *VISION_MODELS])
def test_prompts_are_read_each_alone_and_each_token_in_turn(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Beside longer prompts, and before whatever follows."""
    loaded, samples = load(name, tmp_path, model_dir)
    together = logprobs(loaded, samples, [[20, 21, 22]] * len(samples))
    for row, sample in zip(together, samples, strict=True):
        (alone,) = logprobs(loaded, [sample], [[20, 21, 22]])
        (other,) = logprobs(loaded, [sample], [[20, 30, 31]])
        assert (row - alone).abs().max() < CLOSE
        assert (other - alone)[:2].abs().max() < CLOSE
        assert (other - alone)[2].abs().max() > CLOSE


def test_a_text_model_needs_no_padding_token_and_no_processor(
    tmp_path: Path, model_dir: Path
) -> None:
    """As Gemma 3's small checkpoints name a processor, and Llama's know no padding."""
    loaded, samples = load("llama", tmp_path, model_dir)
    want = logprobs(loaded, samples, [[20]] * len(samples))
    file = next(tmp_path.rglob("tokenizer_config.json"))
    told = json.loads(file.read_text())
    told.pop("pad_token")
    file.write_text(json.dumps(told | {"processor_class": "Gemma3Processor"}))
    bare = LoadedModel.load(file.parent, "cpu")
    got = logprobs(bare, samples, [[20]] * len(samples))
    torch.testing.assert_close(got, want, rtol=0, atol=CLOSE)
