# SPDX-License-Identifier: Apache-2.0
"""The words sauce-tiny knows."""

from functools import cache

from tiny.concepts import CONCEPTS
from tiny.questions import TRAIN_WORDS

PAD, UNK, BOS, EOS, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<image>"
SPECIAL = (PAD, UNK, BOS, EOS, IMAGE)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return all tokens in the order of their ids."""
    words = sorted(set(TRAIN_WORDS) | set(CONCEPTS))
    return (*SPECIAL, *words)


@cache
def _ids() -> dict[str, int]:
    return {token: i for i, token in enumerate(vocabulary())}


def token_id(token: str) -> int:
    """Return the id of a token, or that of ``<unk>``."""
    return _ids().get(token, SPECIAL.index(UNK))


def words_of(text: str) -> list[str]:
    """Split a text as the tokenizer does: lower case, each punctuation mark alone."""
    spaced = "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text)
    return spaced.lower().split()


def encode(text: str) -> list[int]:
    """Return the ids of a text without special tokens."""
    return [token_id(word) for word in words_of(text)]
