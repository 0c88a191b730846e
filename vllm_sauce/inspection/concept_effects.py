# SPDX-License-Identifier: Apache-2.0
"""What forgetting a concept does to it, and to the others, at each strength."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_sauce.concepts import Catalogue, Concept
from vllm_sauce.evaluation.asking.hf_model import Quiz
from vllm_sauce.evaluation.quiz import NAME, NO, YES, Marks, Question
from vllm_sauce.models.site_edits import edit_fns
from vllm_sauce.sae import SAEWeights

STRENGTHS = tuple(step / 4 for step in range(13))
"""0, 0.25, ... 3."""

CALIBRATED = 1.0


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
    """Asks a quiz under the edits of a catalogue's concepts."""

    def __init__(
        self,
        quiz: Quiz,
        catalogue: Catalogue,
        saes: Mapping[str, SAEWeights],
        shown: Sequence[Sequence[str]],
        *,
        strengths: Sequence[float] = STRENGTHS,
        retained_pictures: int = 16,
        seed: int = 0,
    ) -> None:
        self.quiz, self.catalogue, self.saes = quiz, catalogue, saes
        self.shown = [frozenset(names) for names in shown]
        self.strengths = tuple(strengths)
        self.retained_pictures, self.seed = retained_pictures, seed
        self.plain = quiz.ask({})

    def effects(
        self, name: str, progress: Callable[[], None] = lambda: None
    ) -> Effects:
        """Return what forgetting a concept does; ``progress`` is told each strength."""
        concept = self.catalogue[name]
        groups = self._groups(concept)
        everything = range(len(self.quiz.questions))
        used = sorted({i for _, _, mine in groups for i in mine})
        answered: dict[float, dict[int, tuple[float, float]]] = {}
        for strength in sorted({*self.strengths, CALIBRATED}):
            asked = list(everything) if strength == CALIBRATED else used
            answered[strength] = self._ask(concept, strength, asked)
            progress()
        lines = tuple(
            self._line(label, target, mine, answered)
            for label, target, mine in groups
            if mine
        )
        after = {i: marks[0] for i, marks in answered[CALIBRATED].items()}
        own = self._damage(name, [i for i in everything if self._about(i, name)], after)
        damages = [
            found
            for other in self.catalogue
            if other != name
            and (found := self._damage(other, self._spared(name, other), after))
        ]
        damages.sort(key=lambda damage: (-damage.drop, damage.name))
        return Effects(self.strengths, lines, tuple(damages), own)

    def _ask(
        self, concept: Concept, strength: float, asked: Sequence[int]
    ) -> dict[int, tuple[float, float]]:
        """Return probability of the right answer and whether it is given."""
        if strength == 0:
            marks = Marks(self.plain.probability[asked], self.plain.right[asked])
        else:
            device = self.quiz.loaded.device
            fns = edit_fns(self.saes, concept, strength, device)
            marks = self.quiz.ask(fns, asked)
        pairs = zip(
            marks.probability.tolist(), marks.right.float().tolist(), strict=True
        )
        return dict(zip(asked, pairs, strict=True))

    def _groups(self, concept: Concept) -> list[tuple[str, bool, list[int]]]:
        """Return the chart's lines: label, whether it must fall, question numbers."""
        questions = list(enumerate(self.quiz.questions))
        kept = self._retained(concept.name)
        alike: list[int] = []
        far: list[int] = []
        for i, question in questions:
            if question.picture in kept and question.concept != concept.name:
                domain = self.catalogue[question.concept].domain
                (alike if domain == concept.domain else far).append(i)
        own = [(i, q) for i, q in questions if self._about(i, concept.name)]
        return [
            ("says it is there", True, [i for i, q in own if q.answer == YES]),
            ("names it", True, [i for i, q in own if q.answer == NAME]),
            (f"others of {concept.domain}", False, alike),
            ("other domains", False, far),
        ]

    def _retained(self, name: str) -> set[int]:
        """Return pictures without a concept; half show its domain, if enough do."""
        rng = random.Random(f"{self.seed}/{name}")
        domain = self.catalogue[name].domain
        without = [i for i, names in enumerate(self.shown) if name not in names]
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

    def _about(self, i: int, name: str) -> bool:
        question: Question = self.quiz.questions[i]
        return question.concept == name and question.answer != NO

    def _spared(self, forgotten: str, other: str) -> list[int]:
        """Return questions about another concept on pictures without the forgotten."""
        return [
            i
            for i, question in enumerate(self.quiz.questions)
            if self._about(i, other) and forgotten not in self.shown[question.picture]
        ]

    def _damage(
        self, name: str, questions: Sequence[int], after: Mapping[int, float]
    ) -> Damage | None:
        if not questions:
            return None
        before = float(self.plain.probability[list(questions)].mean())
        return Damage(name, before, _mean([after[i] for i in questions]))

    def _line(
        self,
        label: str,
        target: bool,
        mine: Sequence[int],
        answered: Mapping[float, Mapping[int, tuple[float, float]]],
    ) -> Line:
        means = [
            [_mean([answered[s][i][part] for i in mine]) for s in self.strengths]
            for part in (0, 1)
        ]
        return Line(label, target, len(mine), tuple(means[0]), tuple(means[1]))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
