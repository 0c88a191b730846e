# SPDX-License-Identifier: Apache-2.0
"""Scores of forgetting one concept, as SAUCE (arXiv:2503.14530) names them.

``docs/metrics.md`` defines them. A malformed answer is wrong, whatever was asked: for
UAg, as if the concept had been named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind, Part, Question

NAMES = ("UAg", "UAd", "IRA", "CRA")


def harmonic_mean(values: Iterable[float]) -> float:
    """Return the harmonic mean of shares; 0 when one of them is 0.

    Raises: ConfigError if there is none or one is negative
    """
    shares = list(values)
    if not shares or min(shares) < 0:
        raise ConfigError(f"a harmonic mean needs shares of at least 0, got {shares}")
    if min(shares) == 0:
        return 0.0
    return len(shares) / sum(1 / share for share in shares)


def forgets(scores: Mapping[str, float | None], floor: float) -> bool:
    """Say whether a concept is forgotten: UAg and UAd reach a floor, where asked."""
    asked = map(scores.get, ("UAg", "UAd"))
    return all(share is None or share >= floor for share in asked)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One edit's scores; None where nothing could be asked."""

    UAg: float
    UAd: float | None
    IRA: float | None
    CRA: float
    watched: Mapping[str, float] = field(default_factory=dict)
    """How often each other concept is named right where it is."""
    malformed: float = 0.0
    """Share of all answers that are spoilt."""

    @property
    def HM(self) -> float:
        """Harmonic mean of those that there are."""
        return harmonic_mean([s for s in self.values() if s is not None])

    @property
    def forgetting(self) -> float:
        """Harmonic mean of UAg and UAd."""
        return harmonic_mean([s for s in (self.UAg, self.UAd) if s is not None])

    def values(self) -> tuple[float, float | None, float | None, float]:
        """Return the four."""
        return self.UAg, self.UAd, self.IRA, self.CRA

    def loss(self, base: Outcome) -> float:
        """Return the larger loss of IRA and CRA against the unedited model."""
        pairs = ((base.IRA, self.IRA), (base.CRA, self.CRA))
        return max(
            before - after
            for before, after in pairs
            if before is not None and after is not None
        )

    def worst(self, base: Outcome) -> tuple[str, float]:
        """Return the concept that lost most against the unedited model, and how much.

        ("", 0) if nothing was lost.
        """
        lost = {name: base.watched[name] - kept for name, kept in self.watched.items()}
        name = max(lost, key=lost.__getitem__, default="")
        return (name, lost[name]) if lost.get(name, 0.0) > 0 else ("", 0.0)

    def to_json(self) -> dict[str, float | None]:
        """Return the scores rounded to four digits."""
        scores = dict(zip((*NAMES, "HM"), (*self.values(), self.HM), strict=True))
        scores["malformed"] = self.malformed
        return {n: None if s is None else round(s, 4) for n, s in scores.items()}


def outcome(
    questions: Sequence[Question],
    right: Sequence[float],
    spoilt: Sequence[bool] | None = None,
) -> Outcome:
    """Return the scores of one edit from how right each answer was, 0..1.

    ``spoilt``: which answers are malformed; none of them if it is left out.

    Raises: ConfigError if what must be asked was not
    """
    marks = _marks(questions, right, spoilt)
    named, denied = (
        [mark for one, mark in zip(questions, marks, strict=True) if one.part is part]
        for part in (Part.UAG, Part.UAD)
    )
    weights = [_weights(questions, parts) for parts in KEPT]
    IRA, CRA = (
        sum(weight * marks[at] for at, weight in each.items()) if each else None
        for each in weights
    )
    if not named or CRA is None:
        raise ConfigError("a score without a single question")
    watched: dict[str, list[float]] = {}
    for question, mark in zip(questions, marks, strict=True):
        if question.part is Part.WATCHED:
            watched.setdefault(question.about, []).append(mark)
    return Outcome(
        UAg=mean([1 - mark for mark in named]),
        UAd=mean(denied) if denied else None,
        IRA=IRA,
        CRA=CRA,
        watched={name: mean(values) for name, values in watched.items()},
        malformed=mean(list(map(float, spoilt or [False] * len(questions)))),
    )


KEPT = ((Part.IRA,), (Part.CRA_SHOWN, Part.CRA_OTHER))
"""The parts whose accuracies make IRA, and CRA, each as much."""


def sure_forgetting(scores: Outcome, questions: Sequence[Question]) -> float:
    """Return the smaller of UAg and UAd less one standard error (Wilson's, z = 1).

    Of few answers little is sure: four of four are 0.8, fifteen of sixteen 0.85.
    """
    counts = Counter(question.part for question in questions)
    pairs = (scores.UAg, counts[Part.UAG]), (scores.UAd, counts[Part.UAD])
    return min(_lower(share, n) for share, n in pairs if share is not None)


def sure_loss(
    questions: Sequence[Question],
    before: Sequence[float],
    right: Sequence[float],
    spoilt: Sequence[bool] | None = None,
) -> float:
    """Return what IRA or CRA lost beyond one standard error, the larger of the two.

    The same questions were asked before, so what errs is the answers that changed: a
    single one that is lost tells nothing, however few there are.
    """
    pairs = zip(before, _marks(questions, right, spoilt), strict=True)
    change = [known - mark for known, mark in pairs]
    found = []
    for parts in KEPT:
        lost = [
            weight * change[at] for at, weight in _weights(questions, parts).items()
        ]
        if lost:
            found.append(sum(lost) - sum(one * one for one in lost) ** 0.5)
    return max(0.0, *found)


def _marks(
    questions: Sequence[Question],
    right: Sequence[float],
    spoilt: Sequence[bool] | None,
) -> list[float]:
    """Return how right each answer counts as, malformed ones as wrong."""
    bad = spoilt or [False] * len(questions)
    return [
        float(question.part is Part.UAG) if broken else known
        for question, known, broken in zip(questions, right, bad, strict=True)
    ]


def _weights(questions: Sequence[Question], parts: Sequence[Part]) -> dict[int, float]:
    """Return what each question of some parts counts for in their accuracy.

    That is a mean of parts; of a part, of naming's and balanced yes/no's.
    """
    numbers: dict[tuple[Part | None, Kind], list[int]] = {}
    for number, question in enumerate(questions):
        if question.part in parts:
            numbers.setdefault((question.part, question.kind), []).append(number)
    found = {}
    for part in {part for part, _ in numbers}:
        kinds = {kind for each, kind in numbers if each is part}
        yes_no = kinds & {Kind.YES, Kind.NO}
        shares = len(kinds - yes_no) + bool(yes_no)
        for kind in kinds:
            mine = numbers[part, kind]
            among = shares * (len(yes_no) if kind in yes_no else 1)
            for number in mine:
                found[number] = 1 / (among * len(mine))
    num_parts = len({part for part, _ in numbers})
    return {number: weight / num_parts for number, weight in found.items()}


def _lower(share: float, n: int) -> float:
    error = (share * (1 - share) / n + 1 / (4 * n * n)) ** 0.5
    return (share + 1 / (2 * n) - error) / (1 + 1 / n)


def mean(values: Sequence[float]) -> float:
    """Return the mean of values, of which there is one at least."""
    return sum(values) / len(values)
