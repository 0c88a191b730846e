# SPDX-License-Identifier: Apache-2.0
"""Asking: a question under an edit or none, what comes back, and who answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from vllm_sauce.evaluation.questions import Question, malformed
from vllm_sauce.models.answer_tokens import Tokens

Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question as it is put, and what is read of the answer."""

    question: Question

    forget: tuple[str, ...] = ()
    """Concepts whose edits act together; none for the model as it is."""

    strength: float = 1.0
    """Factor on the edits' change."""

    wanted: tuple[Tokens, ...] = ()
    """Answers, or their first tokens, whose log-probabilities are wanted."""

    max_tokens: int = 1
    """Tokens that are written."""

    banned: tuple[str, ...] = ()
    """Words that the sampler may not write: a baseline that needs no edit."""

    @property
    def edited(self) -> bool:
        """Whether anything is done to the model."""
        return bool(self.forget) and self.strength > 0

    def places(self) -> Mapping[Tokens, Tokens]:
        """Return after which tokens of an answer which next ones are read."""
        return _places(self.wanted)

    def lines(self) -> Mapping[Tokens, Sequence[Tokens]]:
        """Return the longest of ``places``, and which of them each one passes."""
        return _lines(self.wanted)


# Thousands of questions want one of a few hundred sets of answers.
@lru_cache(maxsize=4096)
def _places(wanted: tuple[Tokens, ...]) -> dict[Tokens, Tokens]:
    found: dict[Tokens, dict[int, None]] = {(): {}}
    for tokens in wanted:
        for at, token in enumerate(tokens):
            found.setdefault(tokens[:at], {})[token] = None
    return {before: tuple(after) for before, after in found.items()}


@lru_cache(maxsize=4096)
def _lines(wanted: tuple[Tokens, ...]) -> dict[Tokens, list[Tokens]]:
    places = list(_places(wanted))
    # None but itself begins with it.
    ends = [p for p in places if sum(o[: len(p)] == p for o in places) == 1]
    return {end: [p for p in places if end[: len(p)] == p] for end in ends}


@dataclass(frozen=True, slots=True)
class Place:
    """What a model says at one place of an answer."""

    said: Tokens
    """The likeliest next token, or more of them."""
    logprobs: Mapping[int, float]
    """Of tokens that may stand here."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question."""

    text: str
    """The likeliest answer, without outer blanks."""
    said: Tokens = ()
    """Its tokens, as far as they were written or read."""
    logprobs: Mapping[Tokens, float] = field(default_factory=dict)
    """Of what was wanted and, if anything was, of what was said first."""
    finished: bool = True
    """Whether the model ended it, not the limit of tokens."""

    @classmethod
    def read(
        cls,
        ask: Ask,
        places: Mapping[Tokens, Place],
        text: str,
        *,
        finished: bool = True,
    ) -> Answer:
        """Return an answer from what was said at all its places."""
        start = places[()]
        said = start.said
        while more := places[said].said if said and said in places else ():
            said = (*said, *more)
        logprobs: dict[Tokens, float] = {
            (token,): value for token, value in start.logprobs.items()
        }
        for tokens in ask.wanted:
            logprobs[tokens] = sum(
                places[tokens[:at]].logprobs[token] for at, token in enumerate(tokens)
            )
        return cls(text.strip(), said, logprobs, finished)

    def malformed(self, unedited: Answer) -> bool:
        """Say whether this answer is spoilt, beside what the model says unedited."""
        goes_on = unedited.finished and not self.finished
        return malformed(self.text, unedited.text, goes_on=goes_on)

    def says(self, wanted: Iterable[Tokens]) -> bool:
        """Say whether the likeliest answer begins with one of these."""
        return any(self.said[: len(tokens)] == tokens for tokens in wanted)

    def log_probability(self, wanted: Iterable[Tokens]) -> float:
        """Return the log-probability that the answer begins with one of these."""
        values = [self.logprobs[tokens] for tokens in wanted]
        top = max(values)
        return top + math.log(sum(math.exp(value - top) for value in values))

    def probability(self, wanted: Iterable[Tokens]) -> float:
        """Return the probability that the answer begins with one of these."""
        return min(1.0, sum(math.exp(self.logprobs[tokens]) for tokens in wanted))


class Asker(Protocol):
    """A model that answers under edits that it knows by name."""

    @property
    def tokenizer(self) -> Any:
        """What makes tokens of words."""
        ...

    def ask(
        self, asks: Sequence[Ask], progress: Progress = lambda done, total: None
    ) -> list[Answer]:
        """Return the answers, in their order.

        Raises: UnknownConceptError for an edit that it does not know
        """
        ...
