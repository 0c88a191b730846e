# SPDX-License-Identifier: Apache-2.0
"""What forgetting a concept does to it, and to the others, at each strength."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from vllm_sauce.concepts import Catalogue, Concept
from vllm_sauce.evaluation.asking.asker import Ask, Asker
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.models.answer_tokens import Tokens, beginnings, spellings

CALIBRATED = 1.0


class Mark(NamedTuple):
    """How one question was answered."""

    probability: float
    """Of the right answer."""
    right: bool
    """Whether the right answer is the likeliest one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a dose-response chart."""

    label: str
    target: bool
    """Whether it is to fall (the forgotten concept) or to stay (all others)."""
    questions: int
    probability: tuple[float, ...]
    """Mean probability of the right answer, by strength."""
    accuracy: tuple[float, ...]
    """Share of questions answered right, by strength."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What forgetting one concept costs another, on pictures without the first."""

    name: str
    before: float
    """Mean probability of the right answers, unedited."""
    after: float
    """The same at strength 1."""

    @property
    def drop(self) -> float:
        """How much of the probability is lost; negative if it grew."""
        return self.before - self.after


@dataclass(frozen=True, slots=True)
class Effects:
    """What forgetting one concept does."""

    strengths: tuple[float, ...]
    lines: tuple[Line, ...]
    damages: tuple[Damage, ...]
    """Other concepts, most damaged first."""
    own: Damage | None
    """The concept itself, on pictures with it; None if there are none."""


class EffectMeasure:
    """Asks questions under the edits of a catalogue's concepts."""

    def __init__(
        self,
        asker: Asker,
        questions: Sequence[Question],
        catalogue: Catalogue,
        *,
        strengths: Sequence[float],
        retained_pictures: int = 16,
    ) -> None:
        self.asker, self.questions = asker, tuple(questions)
        self.catalogue, self.strengths = catalogue, tuple(strengths)
        self.retained_pictures = retained_pictures
        self.about: dict[str, list[int]] = {name: [] for name in catalogue}
        """Questions by the concept that they are about and that is there."""
        for i, question in enumerate(questions):
            if question.kind is not Kind.NO:
                self.about[question.about].append(i)
        # By picture, in the order in which they are asked about.
        self.shown = {id(q.picture): frozenset(q.shown) for q in questions}
        self.wanted = [
            beginnings(asker.tokenizer, q.words) if q.kind is not Kind.NAME else ()
            for q in questions
        ]
        self._choose_spellings()
        self.plain = self._ask((), 0.0, range(len(questions)))

    def _choose_spellings(self) -> None:
        """Take each name as the unedited model likes best to write it."""
        first = {q.about: q for q in self.questions if q.kind is Kind.NAME}
        ways = {n: spellings(self.asker.tokenizer, q.words) for n, q in first.items()}
        asks = [Ask(question=q, wanted=ways[name]) for name, q in first.items()]
        best: dict[str, Tokens] = {}
        for name, answer in zip(first, self.asker.ask(asks), strict=True):
            best[name] = max(ways[name], key=answer.logprobs.__getitem__)
        for i, question in enumerate(self.questions):
            if question.kind is Kind.NAME:
                self.wanted[i] = (best[question.about],)

    def effects(
        self, name: str, progress: Callable[[], None] = lambda: None
    ) -> Effects:
        """Return what forgetting a concept does; ``progress`` is told each strength."""
        concept = self.catalogue[name]
        groups = self._groups(concept)
        used = {i for _, _, mine in groups for i in mine}
        spared = {other: self._spared(name, other) for other in self.catalogue}
        spared.pop(name)
        own = self.about[name]
        compared = {i for mine in spared.values() for i in mine}
        answered: dict[float, dict[int, Mark]] = {}
        for strength in sorted({*self.strengths, CALIBRATED}):
            asked = used | compared | {*own} if strength == CALIBRATED else used
            answered[strength] = self._ask((name,), strength, sorted(asked))
            progress()
        lines = tuple(
            self._line(label, target, mine, answered)
            for label, target, mine in groups
            if mine
        )
        after = answered[CALIBRATED]
        damages = [
            found
            for other, mine in spared.items()
            if (found := self._damage(other, mine, after))
        ]
        damages.sort(key=lambda damage: (-damage.drop, damage.name))
        mine = self._damage(name, own, after)
        return Effects(self.strengths, lines, tuple(damages), mine)

    def _ask(
        self, forget: tuple[str, ...], strength: float, asked: Iterable[int]
    ) -> dict[int, Mark]:
        """Return how some questions, by number, are answered."""
        numbers = list(asked)
        if forget and strength == 0:
            return {i: self.plain[i] for i in numbers}
        asks = [
            Ask(
                question=self.questions[i],
                forget=forget,
                strength=strength,
                wanted=self.wanted[i],
            )
            for i in numbers
        ]
        return {
            i: Mark(answer.probability(self.wanted[i]), answer.says(self.wanted[i]))
            for i, answer in zip(numbers, self.asker.ask(asks), strict=True)
        }

    def _groups(self, concept: Concept) -> list[tuple[str, bool, list[int]]]:
        """Return the chart's lines: label, whether it must fall, question numbers."""
        questions = list(enumerate(self.questions))
        kept = self._retained(concept.name)
        alike: list[int] = []
        far: list[int] = []
        for i, question in questions:
            if id(question.picture) in kept and question.about != concept.name:
                domain = self.catalogue[question.about].domain
                (alike if domain == concept.domain else far).append(i)
        own = [(i, self.questions[i]) for i in self.about[concept.name]]
        return [
            ("says it is there", True, [i for i, q in own if q.kind is Kind.YES]),
            ("names it", True, [i for i, q in own if q.kind is Kind.NAME]),
            (f"others of {concept.domain}", False, alike),
            ("other domains", False, far),
        ]

    def _retained(self, name: str) -> set[int]:
        """Return pictures without a concept; half show its domain, if enough do."""
        rng = random.Random(f"0/{name}")
        domain = self.catalogue[name].domain
        without = [i for i, names in self.shown.items() if name not in names]
        rng.shuffle(without)
        near = [i for i in without if self._shows(i, domain)]
        half = near[: self.retained_pictures // 2]
        rest = [i for i in without if i not in set(half)]
        return {*half, *rest[: self.retained_pictures - len(half)]}

    def _shows(self, picture: int, domain: str) -> bool:
        return any(
            name in self.catalogue and self.catalogue[name].domain == domain
            for name in self.shown[picture]
        )

    def _spared(self, forgotten: str, other: str) -> list[int]:
        """Return questions about another concept on pictures without the forgotten."""
        about = self.about[other]
        return [i for i in about if forgotten not in self.questions[i].shown]

    def _damage(
        self, name: str, questions: Sequence[int], after: Mapping[int, Mark]
    ) -> Damage | None:
        if not questions:
            return None
        before, now = (
            fmean(marks[i].probability for i in questions)
            for marks in (self.plain, after)
        )
        return Damage(name, before, now)

    def _line(
        self,
        label: str,
        target: bool,
        mine: Sequence[int],
        answered: Mapping[float, Mapping[int, Mark]],
    ) -> Line:
        doses = [[answered[s][i] for i in mine] for s in self.strengths]
        return Line(
            label,
            target,
            len(mine),
            tuple(fmean(mark.probability for mark in marks) for marks in doses),
            tuple(fmean(mark.right for mark in marks) for marks in doses),
        )
