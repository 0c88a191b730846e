# SPDX-License-Identifier: Apache-2.0
"""What keeps a language model's sampler from a word."""

from transformers import AutoTokenizer

from tests.smollm2 import smollm2
from vllm_sauce.evaluation.asking.vllm_engine import whole_tokens


def test_a_word_is_banned_within_a_text_where_its_start_has_more_tokens():
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    start = tokenizer.encode("coffee", add_special_tokens=False)
    (within,) = tokenizer.encode(" coffee", add_special_tokens=False)
    assert len(start) > 1
    assert whole_tokens(tokenizer, ["coffee"]) == [within]
    # Parts of a word are of other words, too.
    assert not set(start) & set(whole_tokens(tokenizer, ["coffee"]))
    assert whole_tokens(tokenizer, []) == []
