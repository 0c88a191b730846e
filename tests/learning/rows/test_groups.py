# SPDX-License-Identifier: Apache-2.0
"""Tokens that are a concept's words, in texts whose tokens are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_sauce.evaluation.questions import word_pattern
from vllm_sauce.learning.rows.groups import (
    WordGroups,
    after_words,
    common_beginning,
    saying,
    text_pieces,
    word_hits,
)


def flags(text):
    return torch.tensor([mark == "x" for mark in text])


@pytest.mark.parametrize(
    ("pieces", "words", "hits"),
    [
        (["The", " hot", " dog", "s", " run"], ["hot dog"], ".xxx."),
        (["a", " dog", "ma", " of", " Dogs", "."], ["dog"], "....x."),
        (["Fr", "ance", "'s", " Fran", "ce"], ["France"], "xx.xx"),
        ([" a+b", " c"], ["a+b"], "x."),
        ([" cat"], ["dog"], "."),
        ([], ["dog"], ""),
    ],
)
def test_each_piece_of_a_word_is_hit(pieces, words, hits):
    assert word_hits(pieces, word_pattern(words)) == flags(hits).tolist()


def test_what_is_before_and_after():
    hits = flags("..xx..x.")
    assert torch.equal(saying(hits, 1), flags(".x...x.."))
    # A word that the prompt has, or goes on with, nobody was about to say.
    assert torch.equal(saying(hits, 2), flags(".x...x.."))
    assert torch.equal(saying(hits, 3), flags(".....x.."))
    assert not saying(hits, 7).any()
    assert torch.equal(after_words(hits), flags("..xxxxxx"))
    assert not after_words(flags("...")).any()
    assert saying(flags("x"), 0).tolist() == [False]


def test_what_texts_begin_with():
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_beginning([[1, 2], [1, 2, 3]]) == 2
    assert common_beginning([[9], [8]]) == common_beginning([]) == 0


class Tokenizer:
    """Drops the blank before a text's first token, as Llama's does."""

    words = ("a", " the", " dog", " cat", "s", " in", " Paris")

    def decode(self, ids):
        return "".join(self.words[i] for i in ids).lstrip(" ")

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[self.words.index(text)])


def test_a_blank_belongs_to_its_token():
    assert text_pieces(Tokenizer(), [2, 4, 5, 6]) == [" dog", "s", " in", " Paris"]


def test_tokens_are_grouped_by_concept():
    """Two texts that begin alike; the second has the word and lacks the thing."""
    concepts: Any = [
        SimpleNamespace(name="dog", answers=("dog",)),
        SimpleNamespace(name="bird", answers=("bird",)),
    ]
    texts = {3: [0, 1, 2, 4, 5], 5: [0, 1, 3, 5, 2, 6]}
    groups = torch.zeros(6, 4, dtype=torch.bool)
    groups[3] = torch.tensor([True, False, False, True])
    groups[5] = torch.tensor([False, True, False, True])
    # Of the first text the model wrote three tokens, of the second two.
    prompts = {3: 2, 5: 4}
    found = WordGroups(Tokenizer(), texts, prompts, concepts, groups)
    sample = torch.tensor([3] * 5 + [5] * 6 + [4])
    position = torch.tensor([*range(5), *range(6), 0])
    got = found.of(sample, position)
    # Of "dog": its tokens, that after which the model wrote them, and what lacks it.
    # The two first tokens are every text's.
    assert torch.equal(got[:5, 0], flags("..xx."))
    assert not got[:5, 1].any()
    assert not got[:5, 2].any()
    assert torch.equal(got[5:11, 0], flags("....x."))
    assert torch.equal(got[5:11, 1], flags("...x.."))
    assert torch.equal(got[5:11, 2], flags("..xx.."))
    assert not got[11].any()
    kinds = found.kinds(got.sum(0))
    # Of "bird" nothing was met.
    assert [(one.kind, one.concepts, one.pairs) for one in kinds] == [
        ("words", ("dog",), ((0, 2),)),
        ("saying", ("dog",), ((1, 2),)),
    ]
