# SPDX-License-Identifier: Apache-2.0
"""What stages read of models in transformers: each prompt alone, each token in turn."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugin.conftest import engine
from tests.plugin.models.compared import picture, write_template
from tests.plugin.models.text_models import TEXT_MODELS, write_text_model
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.data.samples import PictureFile, Sample, open_picture
from vllm_sauce.evaluation.asking.shared_pictures import shares_pictures
from vllm_sauce.measuring.endpoint import picture_part
from vllm_sauce.models.architectures import VISION_ROWS
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.model_size import ModelSize

TEXTS = ("gpt2", "opt", "bloom", "llama", "mamba2", "falcon")
"""Positions that are learnt, turned, sloped, and none. Not GPTBigCode, which counts as
GPT-2 does: vLLM serves transformers' own layers, whose classes it changes in a process.
"""
ARCHITECTURES = {row.architecture for row in TEXT_MODELS.values()} | set(VISION_ROWS)
PROMPTS = ("a dog", "is there a dog ? what is its colour ?", "is there a cat ?")
SIZES = ((112, 84), (56, 112), (112, 112))
CLOSE = 1e-3


WORDS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %} it :"
CARELESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %} it :"
STRIPS = "{{ messages[0]['content'].strip() }} it :"
REFUSES = (
    "{% if messages[0]['content'] is not string %}{{ raise_exception('words') }}"
    "{% endif %}{{ messages[0]['content'] }} it :"
)
PARTS = (
    "user : {% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
LAST = (
    "{% for message in messages %}{% for part in message.content %}"
    "{{ part.text if part.type == 'text' }}{% endfor %}<image>{% endfor %}"
)


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


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "template", "shown"),
    [
        ("llava", WORDS, True),
        ("llava", WORDS, False),
        ("llava", CARELESS, True),
        ("llava", LAST, True),
        ("llama", WORDS, False),
        ("llama", CARELESS, False),
        ("llama", PARTS, False),
        ("llama", STRIPS, False),
        ("llama", REFUSES, False),
        ("llava", STRIPS, True),
        ("paligemma", None, True),
        ("paligemma", None, False),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_prompt_is_what_vllm_makes_of_it(
    name: str, template: str | None, shown: bool, tmp_path: Path, model_dir: Path
) -> None:
    """Templates that know parts, words alone, and none: a stage and a server alike."""
    from vllm import SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    loaded, samples = load(name, tmp_path, model_dir)
    file = next(tmp_path.rglob("chat_template.jinja"))
    if template is None:
        file.unlink()
    else:
        file.write_text(template)
    loaded = LoadedModel.load(file.parent, "cpu")
    sample = samples[0] if shown else replace(samples[0], picture=None)
    image = [picture_part(open_picture(sample.picture))] if sample.picture else []
    content = [*image, {"type": "text", "text": sample.prompt}]
    cleanup_dist_env_and_memory()
    limits = {"limit_mm_per_prompt": VISION_MODELS[name].limits} if shown else {}
    llm = engine(file.parent, None, **limits)
    chat = [{"role": "user", "content": content}]
    (output,) = llm.chat([chat], SamplingParams(max_tokens=1), use_tqdm=False)
    assert loaded.inputs([sample])["input_ids"][0].tolist() == output.prompt_token_ids
    del llm
    gc.collect()


def test_questions_share_what_stands_before_them_alone(
    tmp_path: Path, model_dir: Path
) -> None:
    """Where a picture comes last, each question's beginning is its own."""
    loaded, _ = load("llava", tmp_path, model_dir)
    assert shares_pictures(loaded)
    loaded.processor.chat_template = LAST
    assert not shares_pictures(loaded)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_plan_knows_each_ones_size(architecture: str, tmp_path: Path) -> None:
    """By its own default configuration: what public ones leave out, ours may not."""
    import transformers

    config = getattr(transformers, architecture).config_class()
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    assert ModelSize.read(tmp_path).parameters > 10_000
