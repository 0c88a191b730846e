# SPDX-License-Identifier: Apache-2.0
"""One loader for models with a tower and without."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.families import connector, decoder_layers
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook

WORDS = ["<s>", "<pad>", "user:", "is", "there", "a", "dog", "?", "|"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of text alone, whose template takes a message as text."""
    folder = tmp_path_factory.mktemp("llama")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>"
    )
    tokenizer.chat_template = "<s> user: {{ messages[0]['content'] }} |"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        dtype=torch.float32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_model_of_text_alone_is_loaded_and_read_at_a_site(llama):
    loaded = LoadedModel.load(llama, "cpu")
    inputs = loaded.inputs(
        [Sample(key="0", prompt="is there a dog"), Sample(key="1", prompt="dog")]
    )
    assert loaded.token_texts(inputs["input_ids"][0].tolist())[-2:] == ["dog", "|"]
    assert inputs["attention_mask"][1].tolist() == [0] * 3 + [1] * (
        inputs["input_ids"].shape[1] - 3
    )
    seen = {}

    def keep(x):
        seen["decoder.1"] = x
        return x

    with torch.inference_mode(), site_hook(loaded.model, "decoder.1", keep):
        out = loaded.model(**inputs, output_hidden_states=True)
    assert torch.equal(seen["decoder.1"], out.hidden_states[2])
    assert len(decoder_layers(loaded.model)) == 3
    assert loaded.image_token_id == -1
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no vision site"):
        connector(loaded.model)


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "nothing-known"}'])
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    folder = tmp_path / "none" if content is None else tmp_path
    with pytest.raises(ConfigError, match=f"cannot load the model {folder}"):
        LoadedModel.load(folder)
