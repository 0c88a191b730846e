# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a text are a concept's words, and which come before one is said."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Return what matches one of the words, whole, in any case, plural or not."""
    choices = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:{choices})(?:s|es)?(?!\w)", re.IGNORECASE)


def text_pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text, its blank among it.

    Some tokenizers drop the blank of a text's first token: each is read behind another.
    """
    before = tokenizer("a", add_special_tokens=False).input_ids[-1]
    start = len(tokenizer.decode([before]))
    pieces: dict[int, str] = {}
    for token in tokens:
        if token not in pieces:
            pieces[token] = tokenizer.decode([before, token])[start:]
    return [pieces[token] for token in tokens]


def word_hits(pieces: Sequence[str], pattern: re.Pattern[str]) -> list[bool]:
    """Say of each piece of a text whether it is part of a match."""
    ends = [0, *itertools.accumulate(map(len, pieces))]
    spans = [match.span() for match in pattern.finditer("".join(pieces))]
    return [
        any(start < ends[at + 1] and end > ends[at] for start, end in spans)
        for at in range(len(pieces))
    ]


def common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with alike: a template's."""
    if not texts:
        return 0
    shortest = min(texts, key=len)
    for at, token in enumerate(shortest):
        if any(text[at] != token for text in texts):
            return at
    return len(shortest)


def before_words(hits: Tensor) -> Tensor:
    """Return the hits and the token before each. Shapes: [num_tokens] bool, same out"""
    found = hits.clone()
    found[:-1] |= hits[1:]
    return found


def after_words(hits: Tensor) -> Tensor:
    """Return the tokens from the first hit on. Shapes: [num_tokens] bool, same out"""
    return torch.cummax(hits.to(torch.uint8), 0).values.bool()
