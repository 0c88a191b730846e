# SPDX-License-Identifier: Apache-2.0
"""Random schedules: what is asked, when the engine steps, what is given up."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.soak.universe import FORGED, MASKS, NUM_TOKENS, PICTURES, QUESTIONS, Request

RESETS = ("prefix", "pictures", "encoder")


@dataclass(frozen=True)
class Add:
    """Ask something; of embeddings that the engine core has, maybe by name alone."""

    request: Request
    max_tokens: int
    cached: bool = False


@dataclass(frozen=True)
class Forge:
    """Ask what must be refused whatever else is going on."""

    kind: str
    request: Request


@dataclass(frozen=True)
class Step:
    """Let the engine work."""

    times: int


@dataclass(frozen=True)
class Abort:
    """Give up one of the requests that wait or run, by its place."""

    place: int


@dataclass(frozen=True)
class Reset:
    """Empty a cache in the midst of things."""

    cache: str


Op = Add | Forge | Step | Abort | Reset

_masks = st.sampled_from(MASKS)
_questions = st.integers(0, len(QUESTIONS) - 1)
_tokens = st.integers(1, NUM_TOKENS)


@st.composite
def _crowd(draw: st.DrawFn) -> list[Op]:
    """One question about the same pictures under one to four masks at once."""
    pictures = draw(st.sampled_from(PICTURES))
    question = draw(_questions)
    masks = draw(st.lists(_masks, min_size=1, max_size=4))
    return [
        Add(Request(pictures, question, *mask), draw(_tokens), draw(st.booleans()))
        for mask in masks
    ]


def _one(op: st.SearchStrategy[Op]) -> st.SearchStrategy[list[Op]]:
    return op.map(lambda one: [one])


_forge = st.builds(
    Forge,
    st.sampled_from(sorted(FORGED)),
    st.builds(Request, st.just(("p0",)), _questions),
)
_step = _one(st.builds(Step, st.integers(1, 4)))

SCHEDULES: st.SearchStrategy[list[Op]] = st.lists(
    # A kind that stands here twice is drawn twice as often.
    st.one_of(
        _crowd(),
        _crowd(),
        _crowd(),
        _step,
        _step,
        _step,
        _one(st.builds(Abort, st.integers(0, 15))),
        _one(st.builds(Reset, st.sampled_from(RESETS))),
        _one(_forge),
    ),
    min_size=16,
    max_size=40,
).map(lambda groups: [op for group in groups for op in group])


def text(schedule: list[Op]) -> str:
    """Write a schedule so that it can be read, and pasted back."""
    return "\n".join(f"    {op!r}," for op in schedule)
