# SPDX-License-Identifier: Apache-2.0
"""Choose each concept's edit: hundreds of candidates at the same time in one engine.

Every candidate is a mask of a temporary bundle; all concepts' searches go on in step,
so that their trials fill the engine's batches together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.concepts.calibration import Setting
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.candidate_engine import CandidateEngine, Probe, Reading
from vllm_sauce.evaluation.edit_choices import EditChoices
from vllm_sauce.evaluation.lockstep import Round, coordinate_rounds, in_step
from vllm_sauce.evaluation.questionnaire import (
    Item,
    Kind,
    Outcome,
    Part,
    Questionnaire,
    outcome,
    small_part,
)

Note = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


PREFERENCES = ("forgetting", "balance")
LOSS_WEIGHT, WORST_WEIGHT = 2.0, 0.5
"""How much of a loss beyond its floor the search takes off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """What is tried, on how many examples, and what counts as best."""

    k: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    actions: tuple[str, ...] = (
        *("scale 0", "scale -0.5", "scale -1", "scale -2", "scale -4", "scale -8"),
        *("clamp 0.5", "clamp 1", "clamp 2"),
    )
    """ "scale G": gamma. "clamp C": to -C times the largest activation seen with the
    concept."""
    gates: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)
    """Times the largest activation seen without the concept."""
    retain_floor: float = 0.02
    """What IRA and CRA may lose each."""
    worst_floor: float = 0.35
    """What any single other concept may lose of being named right."""
    prefer: str = "forgetting"
    """What is best among settings that keep to both floors: "forgetting" (of UAg and
    UAd), or "balance" (the harmonic mean of all four)."""
    positives: int = 24
    negatives: int = 24
    """Examples with and without the concept at most."""
    watched: int = 4
    """Examples of every other concept at most."""
    screen: float = 0.25
    """Share of the questions that the search itself asks; the watched concepts that
    many examples show come first."""
    finalists: int = 6
    """Settings that are asked all questions; twice as many are asked half of them."""
    soft: float = 0.5
    """Weight of probabilities in what the search maximises; the rest is right/wrong."""
    passes: int = 2
    """How often the search goes through its coordinates at most."""
    answer_tokens: int = 8
    """Tokens of a written answer."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("retain_floor", "worst_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, got {getattr(self, name)}")
        if self.prefer not in PREFERENCES:
            raise ConfigError(
                f"prefer is one of {', '.join(PREFERENCES)}, got {self.prefer!r}"
            )
        if self.watched < 0:
            raise ConfigError(f"watched must be at least 0, got {self.watched}")
        if not 0 < self.screen <= 1 or not 0 <= self.soft <= 1:
            raise ConfigError("screen lies in (0, 1], soft in [0, 1]")
        if min(self.positives, self.negatives, self.finalists, self.passes) < 1:
            raise ConfigError("positives, negatives, finalists, passes: at least 1")


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


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The edit of one concept, and everything that was tried for it."""

    name: str
    edits: Mapping[str, SiteEdit]
    setting: Setting
    scores: Outcome
    """On all questions of the calibration split."""
    base: Outcome
    """Of the unedited model on the same questions."""
    within_floor: bool
    """Whether IRA, CRA and every other concept lose no more than they may."""
    trials: tuple[Trial, ...] = field(repr=False)
    scored: Outcome | None = None
    """On the scoring split, which chose nothing."""
    scored_base: Outcome | None = None


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
        self._known: dict[tuple[str, float, Hashable], Trial] = {}
        probes, owners = [], []
        for name in choices:
            items = questionnaire.items(
                name, config.positives, config.negatives, config.watched
            )
            self.items[name] = items
            probes += [self._probe(item, None, 1.0) for item in items]
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
    ) -> dict[str, dict[Setting, Trial]]:
        """Try settings of many concepts at the same time; equal edits only once."""
        probes, places = [], {}
        for name, settings in wanted.items():
            chosen = small_part(self.items[name], share)
            for setting in settings:
                key = (name, share, self.choices[name].mask(dict(setting)))
                if key in self._known or key in places:
                    continue
                candidate, strength = self.choices[name].candidate(dict(setting))
                places[key] = (setting, chosen)
                probes += [
                    self._probe(self.items[name][i], candidate, strength)
                    for i in chosen
                ]
        readings = iter(self.engine.evaluate(probes, progress))
        for key, (setting, chosen) in places.items():
            mine = [next(readings) for _ in chosen]
            self._known[key] = self._trial(key[0], setting, chosen, mine, share)
        return {
            name: {
                setting: replace(
                    self._known[name, share, self.choices[name].mask(dict(setting))],
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
        worst = max(0.0, soft.worst(base)[1] - self.config.worst_floor)
        objective = soft.HM - LOSS_WEIGHT * over - WORST_WEIGHT * worst
        return Trial(setting, scores, share, objective, scores.worst(hard))

    def _probe(self, item: Item, candidate: str | None, strength: float) -> Probe:
        if item.words not in self._tokens:
            self._tokens[item.words] = (
                self.engine.answer_tokens(item.words) if item.words else ()
            )
        short = item.kind in (Kind.YES, Kind.NO)
        return Probe(
            prompt=item.prompt,
            picture=item.picture,
            candidate=candidate,
            strength=strength,
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


def calibrate(
    examiner: Examiner, note: Note = lambda what, done, total: None
) -> dict[str, Calibrated]:
    """Search every concept's edit and return the best found.

    Best is what forgets most (or ``prefer``) among what keeps IRA, CRA and every other
    concept within the floors; where nothing does, the harmonic mean less what is lost
    beyond them.
    """
    config = examiner.config
    searches: dict[str, Round] = {
        name: coordinate_rounds(choice.grid, choice.starts, config.passes)
        for name, choice in examiner.choices.items()
    }
    tried = _search(examiner, searches, note)
    # Few questions err; so more of the best are asked more, and the best of those all.
    middle = examiner.trials(
        {
            name: _distinct(examiner, name, trials, 2 * config.finalists)
            for name, trials in tried.items()
        },
        min(1.0, 2 * config.screen),
        lambda done, total: note("semifinals", done, total),
    )
    finals = examiner.trials(
        {
            name: _distinct(examiner, name, trials, config.finalists)
            for name, trials in middle.items()
        },
        1.0,
        lambda done, total: note("finals", done, total),
    )
    return {
        name: _choose(
            examiner,
            name,
            list(trials.values()),
            [*middle[name].values(), *tried[name].values()],
        )
        for name, trials in finals.items()
    }


def _distinct(
    examiner: Examiner, name: str, trials: Mapping[Setting, Trial], count: int
) -> list[Setting]:
    """Return the best settings that differ in what they do."""
    chosen: dict[Hashable, Setting] = {}
    for trial in sorted(trials.values(), key=lambda t: -t.objective):
        mask = examiner.choices[name].mask(dict(trial.setting))
        chosen.setdefault(mask, trial.setting)
    return list(chosen.values())[:count]


def _search(
    examiner: Examiner, searches: Mapping[str, Round], note: Note
) -> dict[str, dict[Setting, Trial]]:
    """Run all searches to their end; return everything that was tried."""
    tried: dict[str, dict[Setting, Trial]] = {name: {} for name in searches}
    step, number = in_step(searches), 0

    def progress(done: int, total: int) -> None:
        note(f"round {number}", done, total)

    try:
        wanted = next(step)
        while True:
            number += 1
            found = examiner.trials(wanted, examiner.config.screen, progress)
            for name, trials in found.items():
                tried[name] |= trials
            objectives = {
                name: {setting: trial.objective for setting, trial in trials.items()}
                for name, trials in found.items()
            }
            wanted = step.send(objectives)
    except StopIteration:
        return tried


def _choose(
    examiner: Examiner,
    name: str,
    finals: Sequence[Trial],
    tried: Sequence[Trial],
) -> Calibrated:
    base, config = examiner.base(name), examiner.config

    def keeps(trial: Trial) -> bool:
        # Shares of few questions: what is lost by rounding alone is not lost.
        return (
            trial.scores.loss(base) <= config.retain_floor + 1e-9
            and trial.worst[1] <= config.worst_floor + 1e-9
        )

    def merit(trial: Trial) -> tuple[float, float]:
        scores = trial.scores
        forgetting = config.prefer == "forgetting"
        return scores.forgetting if forgetting else scores.HM, trial.objective

    kept = [trial for trial in finals if keeps(trial)]
    best = max(kept, key=merit) if kept else max(finals, key=lambda t: t.objective)
    return Calibrated(
        name=name,
        edits=examiner.choices[name].edits(dict(best.setting)),
        setting=best.setting,
        scores=best.scores,
        base=base,
        within_floor=bool(kept),
        trials=(*finals, *tried),
    )
