# SPDX-License-Identifier: Apache-2.0
"""Asks one engine about settings of many concepts, and scores what it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_sauce.evaluation.asking.probes import Probe, Reading
from vllm_sauce.evaluation.asking.vllm_engine import CandidateEngine
from vllm_sauce.evaluation.questionnaire import (
    Item,
    Kind,
    Outcome,
    Part,
    Questionnaire,
    outcome,
    small_part,
)
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.setting import Setting

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
        self.items: dict[str, list[Item]] = {}
        self.plain: dict[str, list[Reading]] = {}
        self._tokens: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._known: dict[tuple[str, float, bool, Hashable], Trial] = {}
        probes, owners = [], []
        for name in choices:
            items = questionnaire.items(
                name, config.positives, config.negatives, config.watched
            )
            self.items[name] = items
            probes += [self._probe(item, ()) for item in items]
            owners += [name] * len(items)
        for name, reading in zip(owners, engine.evaluate(probes), strict=True):
            self.plain.setdefault(name, []).append(reading)
        for name in choices:
            self._drop_other_prompts(name)

    def _drop_other_prompts(self, name: str) -> None:
        """Leave out prompts whose answer says nothing of the concept unedited."""
        pairs = list(zip(self.items[name], self.plain[name], strict=True))
        asked = [
            (item, reading)
            for item, reading in pairs
            if not item.optional or item.right(reading.text, reading.text)
        ]
        # A concept that is never said cannot be forgotten; its scores shall show it.
        if not any(item.part is Part.UAG for item, _ in asked):
            return
        self.items[name] = [item for item, _ in asked]
        self.plain[name] = [reading for _, reading in asked]

    def base(self, name: str) -> Outcome:
        """Return the unedited model's scores."""
        items, plain = self.items[name], self.plain[name]
        return outcome(items, self._rights(items, plain, plain, 0.0))

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
            chosen = small_part(self.items[name], share, watched)
            for setting in settings:
                key = (name, share, watched, self.choices[name].mask(setting))
                if key in self._known or key in places:
                    continue
                parts = self.choices[name].parts(setting)
                places[key] = (setting, chosen)
                probes += [self._probe(self.items[name][i], parts) for i in chosen]
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
        items = [self.items[name][i] for i in chosen]
        plain = [self.plain[name][i] for i in chosen]
        scores, soft = (
            outcome(items, self._rights(items, readings, plain, weight))
            for weight in (0.0, self.config.soft)
        )
        hard, base = (
            outcome(items, self._rights(items, plain, plain, weight))
            for weight in (0.0, self.config.soft)
        )
        over = max(0.0, soft.loss(base) - self.config.retain_floor)
        worst = max(0.0, _doubted(items, soft, base) - self.config.worst_floor)
        objective = soft.HM - LOSS_WEIGHT * over - WORST_WEIGHT * worst
        if not self.choices[name].parts(setting):
            objective = -math.inf  # It edits nothing.
        return Trial(setting, scores, share, objective, scores.worst(hard))

    def _probe(self, item: Item, candidates: tuple[str, ...]) -> Probe:
        if item.words not in self._tokens:
            self._tokens[item.words] = (
                self.engine.answer_tokens(item.words) if item.words else ()
            )
        short = item.kind in (Kind.YES, Kind.NO)
        return Probe(
            prompt=item.prompt,
            picture=item.picture,
            candidates=candidates,
            tokens=self._tokens[item.words],
            max_tokens=2 if short else self.config.answer_tokens,
        )

    def _rights(
        self,
        items: Sequence[Item],
        readings: Sequence[Reading],
        plain: Sequence[Reading],
        soft: float,
    ) -> list[float]:
        """Return how right each answer is; ``soft`` mixes in probabilities."""
        found = []
        for item, reading, before in zip(items, readings, plain, strict=True):
            right = float(item.right(reading.text, before.text))
            tokens = self._tokens[item.words]
            if soft and tokens:
                likely = sum(math.exp(reading.logprobs[token]) for token in tokens)
                right = (1 - soft) * right + soft * min(likely, 1.0)
            found.append(right)
        return found


def _doubted(items: Sequence[Item], scores: Outcome, base: Outcome) -> float:
    """Return what the worst other concept loses, as far as few examples can tell.

    Each concept has one more example that is kept: a single lost one, of dozens of
    concepts, says little.
    """
    count = Counter(item.about for item in items if item.part is Part.WATCHED)
    return max(
        (
            (base.watched[name] - kept) * count[name] / (count[name] + 1)
            for name, kept in scores.watched.items()
        ),
        default=0.0,
    )
