# SPDX-License-Identifier: Apache-2.0
"""Scores of forgetting one concept, as SAUCE (arXiv:2503.14530) names them.

``docs/metrics.md`` defines them. A malformed answer is wrong, whatever was asked: for
UAg, as if the concept had been named.
"""

from __future__ import annotations

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
    marks: dict[Part | None, dict[Kind, list[float]]] = {}
    watched: dict[str, list[float]] = {}
    bad = list(spoilt or [False] * len(questions))
    for question, known, broken in zip(questions, right, bad, strict=True):
        value = known
        if broken:
            value = float(question.part is Part.UAG)
        marks.setdefault(question.part, {}).setdefault(question.kind, []).append(value)
        if question.part is Part.WATCHED:
            watched.setdefault(question.about, []).append(value)
    named, denied = (
        [value for values in marks.get(part, {}).values() for value in values]
        for part in (Part.UAG, Part.UAD)
    )
    halves = [
        _accuracy(marks[part])
        for part in (Part.CRA_SHOWN, Part.CRA_OTHER)
        if part in marks
    ]
    if not named or not halves:
        raise ConfigError("a score without a single question")
    return Outcome(
        UAg=mean([1 - value for value in named]),
        UAd=mean(denied) if denied else None,
        IRA=_accuracy(marks[Part.IRA]) if Part.IRA in marks else None,
        CRA=mean(halves),
        watched={name: mean(values) for name, values in watched.items()},
        malformed=mean(list(map(float, bad))),
    )


def _accuracy(marks: Mapping[Kind, Sequence[float]]) -> float:
    """Return the mean of naming's and balanced yes/no's accuracy, each half."""
    means = {kind: mean(values) for kind, values in marks.items()}
    shares = [means[kind] for kind in (Kind.NAME, Kind.KEEP) if kind in means]
    if yes_no := [means[kind] for kind in (Kind.YES, Kind.NO) if kind in means]:
        shares.append(mean(yes_no))
    return mean(shares)


def mean(values: Sequence[float]) -> float:
    """Return the mean of values, of which there is one at least."""
    return sum(values) / len(values)
