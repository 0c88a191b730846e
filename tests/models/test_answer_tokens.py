# SPDX-License-Identifier: Apache-2.0
"""How a word may be written, by a tokenizer that one can read."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.models.answer_tokens import beginnings, spellings


class Letters:
    """A tokenizer with a blank of its own and one unknown word."""

    unk_token_id = 0
    words = {"▁": 1, "dog": 2, "Dog": 3}

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        parts = (["▁"] if text.startswith(" ") else []) + [text.strip()]
        return [self.words.get(part, 0) for part in parts]

    def decode(self, ids):
        return {1: " ", 2: "dog", 3: "Dog", 0: "<unk>"}[ids[0]]


def test_the_first_token_of_an_answer_in_every_form():
    assert beginnings(Letters(), ["dog"]) == ((2,), (3,))
    with pytest.raises(ConfigError, match="no token for gnu"):
        beginnings(Letters(), ["gnu"])


def test_a_name_of_several_tokens_is_spelt_whole():
    class Halves(Letters):
        def encode(self, text, add_special_tokens):
            return [*super().encode(text, add_special_tokens), 9]

    assert spellings(Halves(), ["dog"]) == ((2, 9), (3, 9))
    assert beginnings(Halves(), ["dog"]) == ((2,), (3,))
