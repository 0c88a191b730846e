# SPDX-License-Identifier: Apache-2.0
"""The tokens with which a model may write an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_sauce.errors import ConfigError

Tokens = tuple[int, ...]


def spellings(tokenizer: Any, words: Iterable[str]) -> tuple[Tokens, ...]:
    """Return the ways in which a model may write one of some words.

    A word alone, after a blank, and with a capital: templates differ in what comes
    before the answer.

    Raises: ConfigError if the tokenizer knows none of the words
    """
    words = list(words)
    found: dict[Tokens, None] = {}
    unknown = getattr(tokenizer, "unk_token_id", None)
    for word in words:
        for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"):
            ids = tokenizer.encode(form, add_special_tokens=False)
            # A token that is nothing but a blank begins every answer.
            while ids and not tokenizer.decode(ids[:1]).strip():
                ids = ids[1:]
            if ids and ids[0] != unknown:
                found[tuple(map(int, ids))] = None
    if not found:
        raise ConfigError(f"the model's tokenizer has no token for {', '.join(words)}")
    return tuple(found)


def beginnings(tokenizer: Any, words: Iterable[str]) -> tuple[Tokens, ...]:
    """Return the first tokens that an answer with one of these words may have.

    Raises: ConfigError if the tokenizer knows none of the words
    """
    return tuple(dict.fromkeys(ids[:1] for ids in spellings(tokenizer, words)))
