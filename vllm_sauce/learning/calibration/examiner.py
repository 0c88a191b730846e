# SPDX-License-Identifier: Apache-2.0
"""Asks about settings of many concepts, and scores what it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from vllm_sauce.evaluation.asking.asker import Answer, Ask, Asker
from vllm_sauce.evaluation.metrics import (
    Outcome,
    outcome,
    sure_forgetting,
    sure_loss,
)
from vllm_sauce.evaluation.questionnaire import Questionnaire, share_of
from vllm_sauce.evaluation.questions import Part, Question
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.setting import Setting
from vllm_sauce.models.answer_tokens import beginnings

LOSS_WEIGHT, WORST_WEIGHT = 2.0, 0.5
"""How much of a loss that is surely beyond its floor the search takes off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sure:
    """What can be told of a trial from as many answers as there are."""

    forgetting: float
    """What UAg and UAd are at least, by one standard error."""
    loss: float
    """What IRA or CRA lost at least, by one standard error."""
    worst: float = 0.0
    """What the worst other concept lost, as if one more answer of it were kept."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried."""

    setting: Setting
    scores: Outcome
    share: float
    """Share of the questions that were asked."""
    objective: float
    """What the search maximised."""
    sure: Sure
    worst: tuple[str, float] = ("", 0.0)
    """The other concept that lost most, and how much."""


class Examiner:
    """Asks a model; what it answers unedited is asked once."""

    def __init__(
        self,
        asker: Asker,
        choices: Mapping[str, EditChoices],
        questionnaire: Questionnaire,
        config: CalibrationConfig,
    ) -> None:
        self.asker, self.choices, self.config = asker, choices, config
        self.plain: dict[str, list[Answer]] = {}
        self._wanted = cache(
            lambda words: beginnings(asker.tokenizer, words) if words else ()
        )
        self._known: dict[tuple[str, float, bool, Hashable], Trial] = {}
        counts = config.positives, config.negatives, config.watched
        self.questions = {n: questionnaire.questions(n, *counts) for n in choices}
        asked = [(name, one) for name, some in self.questions.items() for one in some]
        answers = asker.ask([self._ask(one, ()) for _, one in asked])
        for (name, _), answer in zip(asked, answers, strict=True):
            self.plain.setdefault(name, []).append(answer)
        for name in choices:
            self._drop_other_prompts(name)

    def _drop_other_prompts(self, name: str) -> None:
        """Leave out prompts whose answer says nothing of the concept unedited."""
        pairs = list(zip(self.questions[name], self.plain[name], strict=True))
        asked = [
            (question, answer)
            for question, answer in pairs
            if not question.optional or question.right(answer.text, answer.text)
        ]
        # A concept that is never said cannot be forgotten; its scores shall show it.
        if not any(question.part is Part.UAG for question, _ in asked):
            return
        self.questions[name] = [question for question, _ in asked]
        self.plain[name] = [answer for _, answer in asked]

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
        asks, places = [], {}
        for name, settings in wanted.items():
            chosen = share_of(self.questions[name], share, watched=watched)
            for setting in settings:
                key = (name, share, watched, self.choices[name].mask(setting))
                if key in self._known or key in places:
                    continue
                parts = self.choices[name].parts(setting)
                places[key] = (setting, chosen)
                asks += [self._ask(self.questions[name][i], parts) for i in chosen]
        answers = iter(self.asker.ask(asks, progress))
        for key, (setting, chosen) in places.items():
            mine = [next(answers) for _ in chosen]
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
        answers: Sequence[Answer],
        share: float,
    ) -> Trial:
        questions = [self.questions[name][i] for i in chosen]
        plain = [self.plain[name][i] for i in chosen]
        pairs = zip(answers, plain, strict=True)
        spoilt = [answer.malformed(before) for answer, before in pairs]
        weights = 0.0, self.config.soft
        rights = [self._rights(questions, answers, plain, weight) for weight in weights]
        known = [self._rights(questions, plain, plain, weight) for weight in weights]
        scores, soft = (outcome(questions, right, spoilt) for right in rights)
        hard, base = (outcome(questions, right) for right in known)
        lost, doubted = (
            sure_loss(questions, before, right, spoilt)
            for before, right in zip(known, rights, strict=True)
        )
        over = max(0.0, doubted - self.config.retain_floor)
        worst = max(0.0, _doubted(questions, soft, base) - self.config.worst_floor)
        objective = soft.HM - LOSS_WEIGHT * over - WORST_WEIGHT * worst
        if not self.choices[name].parts(setting):
            objective = -math.inf  # It edits nothing.
        sure = Sure(
            forgetting=sure_forgetting(scores, questions),
            loss=lost,
            worst=max(0.0, _doubted(questions, scores, hard)),
        )
        return Trial(setting, scores, share, objective, sure, scores.worst(hard))

    def _ask(self, question: Question, candidates: tuple[str, ...]) -> Ask:
        return Ask(
            question=question,
            forget=candidates,
            wanted=self._wanted(question.words),
            max_tokens=self.config.answer_tokens,
        )

    def _rights(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        plain: Sequence[Answer],
        soft: float,
    ) -> list[float]:
        """Return how right each answer is; ``soft`` mixes in probabilities."""
        found = []
        for question, answer, before in zip(questions, answers, plain, strict=True):
            right = float(question.right(answer.text, before.text))
            wanted = self._wanted(question.words)
            if soft and wanted:
                right = (1 - soft) * right + soft * answer.probability(wanted)
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
