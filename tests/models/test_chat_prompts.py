# SPDX-License-Identifier: Apache-2.0
"""Everything that runs transformers reads the prompt that vLLM serves: one BOS."""

import json
import shutil

import pytest
import torch

from tests.places import TINY
from vllm_sauce.data.pictures import decode_picture
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.importing import site_samples
from vllm_sauce.models.chat_prompts import chat_inputs
from vllm_sauce.models.loaded_model import LoadedModel

PICTURE = TINY / "pictures/000.png"
WORDS = "is there a dog ?"
WAYS = ("looking", "sampling")


def with_bos(folder, *, template):
    """Copy sauce-tiny with a tokenizer that adds BOS; so may its chat template."""
    shutil.copytree(TINY / "model", folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    processor = tokenizer["post_processor"]
    processor["single"].insert(0, special)
    processor["special_tokens"] = {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}}
    file.write_text(json.dumps(tokenizer))
    file = folder / "chat_template.jinja"
    file.write_text("{{ bos_token }}" * template + file.read_text())
    return folder


def prompt_ids(way, folder, picture):
    """The tokens that the model is given by each of those that run it."""
    sample = Sample(key="s", prompt=WORDS, picture=picture)
    if way == "looking":
        return LoadedModel.load(folder).inputs([sample])["input_ids"][0].tolist()
    loaded, seen = LoadedModel.load(folder), {}

    class Recorder:
        device, dtype = loaded.model.device, loaded.model.dtype

        def __call__(self, **inputs):
            seen.update(inputs)

    recorder = LoadedModel(Recorder(), loaded.processor)
    site_samples._read(recorder, [WORDS], [decode_picture(picture.read())])
    return seen["input_ids"][0].tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("template", [True, False])
def test_the_template_alone_writes_the_first_token(tmp_path, way, template):
    """As in vLLM, where no tokenizer adds to a chat."""
    ids = prompt_ids(
        way, with_bos(tmp_path / "m", template=template), PictureFile(PICTURE)
    )
    plain = prompt_ids("looking", TINY / "model", PictureFile(PICTURE))
    assert 2 not in plain and len(plain) > 49
    assert ids == [2] * template + plain


def test_the_tokenizer_of_the_test_does_add_bos(tmp_path):
    processor = LoadedModel.load(with_bos(tmp_path / "m", template=True)).processor
    assert processor.tokenizer(WORDS).input_ids[0] == 2
    assert 2 not in processor.tokenizer(WORDS).input_ids[1:]


def test_prompts_of_many_lengths_end_in_the_last_column(tmp_path):
    loaded = LoadedModel.load(with_bos(tmp_path / "m", template=True))
    samples = [Sample(key=w, prompt=w) for w in (WORDS, "dog")]
    inputs = loaded.inputs(samples)
    assert (inputs["input_ids"][:, -1] == inputs["input_ids"][0, -1]).all()
    assert torch.equal((inputs["input_ids"] == 2).sum(1), torch.tensor([1, 1]))


def test_a_model_without_a_template_is_named():
    class Mute:
        def apply_chat_template(self, *_, **__):
            raise ValueError("no chat template")

    with pytest.raises(ConfigError, match="cannot chat: no chat template"):
        chat_inputs(Mute(), ["hi"])
