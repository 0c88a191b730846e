# SPDX-License-Identifier: Apache-2.0
"""Asks one engine about settings of many concepts, and scores what it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_sauce.evaluation.asking.probes import Probe, Reading
from vllm_sauce.evaluation.asking.vllm_engine import CandidateEngine
from vllm_sauce.evaluation.metrics import Outcome, outcome
from vllm_sauce.evaluation.questionnaire import Questionnaire, share_of
from vllm_sauce.evaluation.questions import Kind, Part, Question
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.coordinate_search import Setting
from vllm_sauce.learning.calibration.edit_choices import EditChoices

LOSS_WEIGHT, WORST_WEIGHT = 2.0, 0.5
"""How much of a loss beyond its floor the search takes off."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried."""

    setting: Setting
    scores: Outcome
    share: float
    """Share of the questions that were asked."""
    objective: float
    """What the search maximised."""
    worst: tuple[str, float] = ("", 0.0)
    """The other concept that lost most, and how much."""


class Examiner:
    """Asks one engine; what the unedited model answers is asked once."""

    def __init__(
        self,
        engine: CandidateEngine,
        choices: Mapping[str, EditChoices],
        questionnaire: Questionnaire,
        config: CalibrationConfig,
    ) -> None:
        self.engine, self.choices, self.config = engine, choices, config
        self.questions: dict[str, list[Question]] = {}
        self.plain: dict[str, list[Reading]] = {}
        self._tokens: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._known: dict[tuple[str, float, bool, Hashable], Trial] = {}
        probes, owners = [], []
        for name in choices:
            questions = questionnaire.questions(
                name, config.positives, config.negatives, config.watched
            )
            self.questions[name] = questions
            probes += [self._probe(question, ()) for question in questions]
            owners += [name] * len(questions)
        for name, reading in zip(owners, engine.evaluate(probes), strict=True):
            self.plain.setdefault(name, []).append(reading)
        for name in choices:
            self._drop_other_prompts(name)

    def _drop_other_prompts(self, name: str) -> None:
        """Leave out prompts whose answer says nothing of the concept unedited."""
        pairs = list(zip(self.questions[name], self.plain[name], strict=True))
        asked = [
            (question, reading)
            for question, reading in pairs
            if not question.optional or question.right(reading.text, reading.text)
        ]
        # A concept that is never said cannot be forgotten; its scores shall show it.
        if not any(question.part is Part.UAG for question, _ in asked):
            return
        self.questions[name] = [question for question, _ in asked]
        self.plain[name] = [reading for _, reading in asked]

    def base(self, name: str) -> Outcome:
        """Return the unedited model's scores."""
        questions, plain = self.questions[name], self.plain[name]
        return outcome(questions, self._rights(questions, plain, plain, 0.0))

    def trials(
        self,
        wanted: Mapping[str, Sequence[Setting]],
        share: float,
        progress: Callable[[int, int], None] = lambda done, total: None,
        watched: bool = True,
    ) -> dict[str, dict[Setting, Trial]]:
        """Try settings of many concepts at the same time; equal edits only once.

        ``watched``: whether every other concept is named too.
        """
        probes, places = [], {}
        for name, settings in wanted.items():
            chosen = share_of(self.questions[name], share, watched=watched)
            for setting in settings:
                key = (name, share, watched, self.choices[name].mask(setting))
                if key in self._known or key in places:
                    continue
                parts = self.choices[name].parts(setting)
                places[key] = (setting, chosen)
                probes += [self._probe(self.questions[name][i], parts) for i in chosen]
        readings = iter(self.engine.evaluate(probes, progress))
        for key, (setting, chosen) in places.items():
            mine = [next(readings) for _ in chosen]
            self._known[key] = self._trial(key[0], setting, chosen, mine, share)
        return {
            name: {
                setting: replace(
                    self._known[name, share, watched, self.choices[name].mask(setting)],
                    setting=setting,
                )
                for setting in settings
            }
            for name, settings in wanted.items()
        }

    def _trial(
        self,
        name: str,
        setting: Setting,
        chosen: Sequence[int],
        readings: Sequence[Reading],
        share: float,
    ) -> Trial:
        questions = [self.questions[name][i] for i in chosen]
        plain = [self.plain[name][i] for i in chosen]
        scores, soft = (
            outcome(questions, self._rights(questions, readings, plain, weight))
            for weight in (0.0, self.config.soft)
        )
        hard, base = (
            outcome(questions, self._rights(questions, plain, plain, weight))
            for weight in (0.0, self.config.soft)
        )
        over = max(0.0, soft.loss(base) - self.config.retain_floor)
        worst = max(0.0, _doubted(questions, soft, base) - self.config.worst_floor)
        objective = soft.HM - LOSS_WEIGHT * over - WORST_WEIGHT * worst
        if not self.choices[name].parts(setting):
            objective = -math.inf  # It edits nothing.
        return Trial(setting, scores, share, objective, scores.worst(hard))

    def _probe(self, question: Question, candidates: tuple[str, ...]) -> Probe:
        if question.words not in self._tokens:
            self._tokens[question.words] = (
                self.engine.answer_tokens(question.words) if question.words else ()
            )
        short = question.kind in (Kind.YES, Kind.NO)
        return Probe(
            prompt=question.prompt,
            picture=question.picture,
            candidates=candidates,
            tokens=self._tokens[question.words],
            max_tokens=2 if short else self.config.answer_tokens,
        )

    def _rights(
        self,
        questions: Sequence[Question],
        readings: Sequence[Reading],
        plain: Sequence[Reading],
        soft: float,
    ) -> list[float]:
        """Return how right each answer is; ``soft`` mixes in probabilities."""
        found = []
        for question, reading, before in zip(questions, readings, plain, strict=True):
            right = float(question.right(reading.text, before.text))
            tokens = self._tokens[question.words]
            if soft and tokens:
                likely = sum(math.exp(reading.logprobs[token]) for token in tokens)
                right = (1 - soft) * right + soft * min(likely, 1.0)
            found.append(right)
        return found


def _doubted(questions: Sequence[Question], scores: Outcome, base: Outcome) -> float:
    """Return what the worst other concept loses, as far as few examples can tell.

    Each concept has one more example that is kept: a single lost one, of dozens of
    concepts, says little.
    """
    count = Counter(
        question.about for question in questions if question.part is Part.WATCHED
    )
    return max(
        (
            (base.watched[name] - kept) * count[name] / (count[name] + 1)
            for name, kept in scores.watched.items()
        ),
        default=0.0,
    )
