# SPDX-License-Identifier: Apache-2.0
"""What a config.json says of a model's size, against the models it describes."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma4Config,
    Gemma4VisionConfig,
    MllamaConfig,
)

from tests.places import EXAMPLES
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.model_size import ModelSize

LLAVA = EXAMPLES / "plans/llava-1.5-7b"
NEXT = EXAMPLES / "plans/llava-v1.6-mistral-7b"
GEMMA = {
    # As google/gemma-3-4b-it's file, which leaves heads and their width to defaults.
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 896,
        "patch_size": 14,
    },
}


def written(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def matrices(module):
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def test_gemma_4_is_counted_layer_by_layer(tmp_path):
    """Some layers' heads are wider; each layer has an input of its own."""
    tower = Gemma4VisionConfig().to_dict()
    config = Gemma4Config(vision_config=tower)
    config.architectures = ["Gemma4ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    size = ModelSize.read(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).model
    layers = model.language_model.layers
    assert matrices(layers[0]) < matrices(layers[5])
    assert size.text_parameters == matrices(layers)
    assert size.tower_parameters == matrices(model.vision_tower.encoder.layers)
    assert size.picture.patches == 280
    assert size.picture.tower_tokens == 9 * 280


def test_llama_3_2_vision_has_two_towers(tmp_path):
    config = MllamaConfig()
    config.architectures = ["MllamaForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    size = ModelSize.read(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).model
    tower = model.vision_model
    assert size.text_parameters == matrices(model.language_model.layers)
    assert size.tower_parameters == sum(
        matrices(part.layers) for part in (tower.transformer, tower.global_transformer)
    )
    assert size.projector_parameters == matrices(model.multi_modal_projector)
    assert size.picture.patches == 4 * (32 * 32 + 1)
    assert size.picture.prompt_tokens == 1


@pytest.mark.parametrize("name", ["tiny", "llava", "llava_next", "gemma3"])
def test_parameters_are_those_of_the_model(name, tmp_path):
    """transformers builds the model, without memory for its numbers."""
    folders = {"tiny": EXAMPLES / "tiny/model", "llava": LLAVA, "llava_next": NEXT}
    folder = folders.get(name) or written(tmp_path, GEMMA)
    size = ModelSize.read(folder)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).model
    assert size.text_parameters == matrices(model.language_model.layers)
    layers = model.vision_tower.encoder.layers
    # LLaVA reads the tower before its last layer.
    read = layers if name == "gemma3" else layers[:-1]
    assert size.tower_parameters == sum(map(matrices, read))
    if name != "gemma3":
        assert size.projector_parameters == matrices(model.multi_modal_projector)


def test_llava_7b_by_hand():
    """Llama 7B has 6.48 G numbers outside its embeddings, CLIP-L/14 0.30 G in all."""
    size = ModelSize.read(LLAVA)
    assert size.text_parameters == 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert size.text_parameters == pytest.approx(6.48e9, rel=1e-3)
    assert size.tower_parameters == 23 * (4 * 1024**2 + 2 * 1024 * 4096)
    assert size.embedding_parameters == 2 * 32_064 * 4096
    assert size.dtype == "float16"
    picture = size.picture
    assert (picture.patches, picture.prompt_tokens) == (24 * 24, 24 * 24)
    assert picture.tower_tokens == 24 * 24 + 1
    assert not picture.tiled


def test_llava_next_is_counted_with_its_tiles():
    """A picture of 672 x 672: the whole and four tiles, a newline after 48 rows."""
    size = ModelSize.read(NEXT)
    # Eight key-value heads of 128 beside 32 for queries.
    attention = 2 * 4096 * 4096 + 2 * 4096 * 8 * 128
    assert size.text_parameters == 32 * (attention + 3 * 4096 * 14_336)
    picture = size.picture
    assert picture.patches == 5 * 576
    assert picture.tower_tokens == 5 * 577
    assert picture.prompt_tokens == 576 + 48 * 48 + 48
    assert picture.tiled


def test_gemma_3_pools_its_patches(tmp_path):
    size = ModelSize.read(written(tmp_path, GEMMA))
    assert size.picture.tower_tokens == 64 * 64
    # 256 soft tokens, and the tokens around them.
    assert size.picture.prompt_tokens == 258
    # Heads are 256 wide, whatever hidden_size / heads says: eight, and four for keys.
    attention = 2 * 2560 * 8 * 256 + 2 * 2560 * 4 * 256
    assert size.text_parameters == 34 * (attention + 3 * 2560 * 10_240)


def test_a_model_without_a_tower(tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    size = ModelSize.read(written(tmp_path, config))
    assert size.d_vision == size.picture.patches == size.tower_parameters == 0
    assert size.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read .*--model is the folder of a model"),
        ("{", "cannot read"),
        ("[]", "must hold a JSON object"),
        ("{}", "it has no model_type"),
        ('{"model_type": "nothing-known"}', "transformers refuses"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config.json"),
        ('{"model_type": "clip_text_model", "hidden_size": null}', "config.json"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        ModelSize.read(tmp_path)
