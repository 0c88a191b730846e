# SPDX-License-Identifier: Apache-2.0
"""Kinds of tokens by their position."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_sauce.plugin.sites.tokens import PictureSpan, PromptTokens


def kinds_of(prompt: PromptTokens, start: int, count: int) -> list[str]:
    """Return the kind of each token."""
    return [kind for kind, length in prompt.spans(start, count) for _ in range(length)]


MARKS = torch.tensor([False, True, True, False, True])
PROMPT = PromptTokens(10, [PictureSpan("a", 1, 2), PictureSpan("b", 4, 5, MARKS)])
WHOLE = [
    "sink",
    *["image"] * 2,
    "prompt",
    *["prompt", "image", "image", "prompt", "image"],
    "prompt",
    *["generated"] * 5,
]


def test_positions_tell_the_kind() -> None:
    """Tokens of a picture's span that stand for no patch are the prompt's."""
    assert kinds_of(PROMPT, 0, 15) == WHOLE
    runs = list(PROMPT.spans(0, 15))
    assert all(one[0] != two[0] for one, two in zip(runs, runs[1:], strict=False))


def test_a_picture_that_is_attended_to_is_one_token() -> None:
    """What vLLM calls its place is one in the encoder's input."""
    feature = SimpleNamespace(
        identifier="a",
        modality="image",
        mm_position=SimpleNamespace(offset=0, length=68, is_embed=None),
    )
    new = SimpleNamespace(prompt_token_ids=[1, 4, 9, 5], mm_features=[feature])
    prompt = PromptTokens.of(new, word=9)
    wanted = ["sink", "prompt", "image", "prompt", "generated"]
    assert kinds_of(prompt, 0, 5) == wanted


@pytest.mark.parametrize("name", ["image", "video", "vision_chunk", "audio", "x"])
def test_what_is_not_words_is_a_picture(name: str) -> None:
    """Whatever the request calls it: vLLM merges it there by any name."""
    place = SimpleNamespace(offset=1, length=3, is_embed=MARKS[:3])
    feature = SimpleNamespace(identifier="a", modality=name, mm_position=place)
    new = SimpleNamespace(prompt_token_ids=[1, 4, 9, 9, 5], mm_features=[feature])
    wanted = ["sink", "prompt", "image", "image", "prompt", "generated"]
    assert kinds_of(PromptTokens.of(new), 0, 6) == wanted


@given(st.integers(0, 20), st.integers(0, 20))
def test_chunks_are_parts_of_the_whole(start: int, count: int) -> None:
    """Wherever a chunk begins, and however far after the prompt."""
    whole = [*WHOLE, *["generated"] * 40]
    assert kinds_of(PROMPT, start, count) == whole[start : start + count]


@pytest.mark.parametrize("length", [1, 2])
def test_the_first_token_is_the_sink(length: int) -> None:
    """Even where it is all of the prompt, or belongs to a picture."""
    expected = ["sink", *["image"] * (length - 1), "generated"]
    prompt = PromptTokens(length, [PictureSpan("a", 0, length)])
    assert kinds_of(prompt, 0, length + 1) == expected


@pytest.mark.parametrize(
    ("is_patch", "spans"),
    [
        (True, [("sink", 1), ("prompt", 1), ("image", 1), ("prompt", 2)]),
        (False, [("sink", 1), ("prompt", 4)]),
    ],
)
def test_a_picture_of_one_token(is_patch: bool, spans: list[tuple[str, int]]) -> None:
    """NumPy would take a tensor of one number for an index."""
    picture = PictureSpan("a", 2, 1, torch.tensor([is_patch]))
    assert list(PromptTokens(5, [picture]).spans(0, 5)) == spans
