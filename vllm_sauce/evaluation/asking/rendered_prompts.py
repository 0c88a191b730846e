# SPDX-License-Identifier: Apache-2.0
"""Prompts in vLLM's own form, prepared once and asked under many masks.

The template, the tokenizer and the image processor take about as long as a small model
itself; a search asks each question dozens of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachetools import LRUCache

from vllm_sauce.data.samples import chat_message
from vllm_sauce.evaluation.questions import Question
from vllm_sauce.plugin import compat

PICTURE_BYTES = 2 * 2**30
"""Prepared pictures that are kept."""

PIXELS = "mm_kwargs"
"""Where a prompt in vLLM's form holds its pictures."""


class RenderedPrompts:
    """Prepared prompts; pictures are shared, and forgotten when there are too many."""

    def __init__(self, picture_bytes: int = PICTURE_BYTES) -> None:
        self._words: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._pixels: LRUCache[str, Any] = LRUCache(picture_bytes, compat.picture_bytes)

    def of(
        self, llm: Any, question: Question, digests: Mapping[int, str]
    ) -> dict[str, Any]:
        """Return a question's prompt. ``digests``: of pictures, by their ``id``."""
        digest = digests.get(id(question.picture))
        key = (question.prompt, digest)
        words = self._words.get(key)
        pixels = None if digest is None else self._pixels.get(digest)
        if words is None or (digest is not None and pixels is None):
            message = chat_message(question.prompt, question.picture, digest)
            words = dict(compat.rendered_chat(llm, [message]))
            fresh = words.pop(PIXELS, None)
            self._words[key] = words
            if digest is not None and pixels is None:
                pixels = fresh
                # One that is larger than the whole store is prepared each time.
                if compat.picture_bytes(fresh) <= self._pixels.maxsize:
                    self._pixels[digest] = fresh
        return {**words, PIXELS: pixels} if digest is not None else dict(words)
