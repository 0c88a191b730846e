# SPDX-License-Identifier: Apache-2.0
"""What kind each token of a request is, by its position."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vllm_sauce.concepts.site import GENERATED, IMAGE, PROMPT, SINK, TOKENS
from vllm_sauce.plugin import compat


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """Where a picture's tokens lie in a request."""

    identifier: str
    offset: int
    length: int
    is_embed: Tensor | None = None
    """[length] bool; None if every token of the span stands for a patch."""

    @classmethod
    def of(cls, feature: Any) -> PictureSpan:
        """Read what vLLM says of a request's picture."""
        at = feature.mm_position
        return cls(feature.identifier, at.offset, at.length, at.is_embed)

    def mark(self, kinds: Tensor | np.ndarray, kind: int) -> None:
        """Write a kind at the picture's patches. Shapes: kinds [num_tokens]"""
        mine = kinds[self.offset : self.offset + self.length]
        if self.is_embed is None:
            mine[:] = kind
        else:
            # An array: NumPy takes a tensor of one number for an index.
            mine[np.asarray(self.is_embed, bool)] = kind


class PromptTokens:
    """The kinds of a request's tokens; what comes after the prompt is generated.

    Positions alone decide, so it does not matter in which chunks tokens come, or
    whether they come again after a preemption.
    """

    def __init__(self, length: int, pictures: Iterable[PictureSpan] = ()) -> None:
        self.length = length
        kinds = np.full(length + 1, TOKENS.index(PROMPT), np.int8)
        for picture in pictures:
            picture.mark(kinds, TOKENS.index(IMAGE))
        kinds[0], kinds[length] = TOKENS.index(SINK), TOKENS.index(GENERATED)
        changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        self._starts: list[int] = [0, *changes.tolist()]
        self._kinds = [TOKENS[kind] for kind in kinds[self._starts].tolist()]

    @classmethod
    def of(cls, new_request: Any, word: int | None = None) -> PromptTokens:
        """Read what vLLM's scheduler says of a request that begins.

        ``word``: the token that stands for a whole picture, of models that attend to
        pictures across; where vLLM has the picture then is no place in the prompt.
        """
        length = compat.prompt_length(new_request)
        if word is not None:
            ids = enumerate(new_request.prompt_token_ids or ())
            return cls(length, [PictureSpan("", i, 1) for i, t in ids if t == word])
        # Whatever a client calls it: what an encoder made is no token of the prompt's.
        return cls(length, map(PictureSpan.of, new_request.mm_features))

    def spans(self, start: int, count: int) -> Iterator[tuple[str, int]]:
        """Yield the kinds of ``count`` tokens from a position on, in runs."""
        end, run = start + count, bisect_right(self._starts, start) - 1
        while start < end:
            last = run + 1 == len(self._starts)
            stop = end if last else min(end, self._starts[run + 1])
            yield self._kinds[run], stop - start
            start, run = stop, run + 1
