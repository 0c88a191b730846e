# SPDX-License-Identifier: Apache-2.0
"""From whole answers to scores with intervals; docs/metrics.md defines them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import NAMES, mean, outcome
from vllm_sauce.evaluation.questions import Kind, Part, first_word, mentions
from vllm_sauce.measuring.answers import Answered
from vllm_sauce.measuring.cases import ALONE, ELIMINATION
from vllm_sauce.measuring.settings import OURS, PLAIN
from vllm_sauce.measuring.side_effects import given_away, leaked, worst_other

SCORES = (*NAMES, "HM", "malformed")
REPLICATES = 200
"""Of a bootstrap."""
NONE = ("none", "nothing", "no", "nobody")
"""First words of an answer that says there is nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A share with its 95 % interval, and of how many answers it is."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "-"
        digits = 3 if self.n >= 1000 else 2
        low, value, high = (
            f"{x:.{digits}f}".lstrip("0") if round(x, digits) < 1 else "1"
            for x in (self.low, self.value, self.high)
        )
        return f"{value} [{low}, {high}]"


Figures = Mapping[str, Figure]
NOTHING_ASKED = Figure(0.0, 0.0, 1.0, 0)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that is shown."""

    alone: Mapping[str, Mapping[str, Figures]]
    """By method, then concept: SCORES of one concept forgotten at a time."""
    domains: Mapping[str, Sequence[str]]
    """Their concepts, in the file's order."""
    means: Mapping[str, Figures]
    """By method: means over the concepts, intervals over concepts."""
    instead: Mapping[str, Mapping[str, Figure]]
    """By method, and of ours by domain: what is said where the name is asked for."""
    false: Mapping[str, Figure]
    """By the same: descriptions that state something that is not there."""
    worst: Mapping[str, Figure]
    """By method: what the other concept that loses most loses, mean over concepts."""
    away: Mapping[str, Figures]
    """By method: what tells that a concept is there which is not said."""
    together: Mapping[str, Figures]
    """By sets: forgotten (name, yes/no), kept (name, yes/no), malformed."""


def results(
    answered: Sequence[Answered],
    file: ConceptFile,
    names: Sequence[str],
    asked_of: Sequence[str],
) -> Results:
    """Score all that was said to the methods ``asked_of``."""
    methods = (PLAIN, *asked_of)
    by: dict[tuple[str, str], list[Answered]] = {}
    watched: dict[tuple[str, str], list[Answered]] = {}
    denied: dict[str, list[Answered]] = {m: [] for m in methods}
    sets: dict[str, list[Answered]] = {}
    for one in answered:
        case = one.case
        if case.group not in (ALONE, ELIMINATION):
            group = case.group.partition(",")[0]
            name = group if case.method == OURS else f"{group}, {case.method}"
            sets.setdefault(name, []).append(one)
            continue
        told = {case.method: one}
        if case.method == asked_of[0]:
            told[PLAIN] = Answered(case, one.plain, one.plain)
        for method, each in told.items():
            if case.group == ELIMINATION:
                denied[method].append(each)
            else:
                kind = watched if case.question.part is Part.WATCHED else by
                kind.setdefault((method, case.forget[0]), []).append(each)
    asked = {key: _counting(found) for key, found in by.items()}
    watched = {key: list(filter(_counts, found)) for key, found in watched.items()}
    alone = {m: {n: _scores(asked[m, n]) for n in names} for m in methods}
    said = {m: [one for n in names for one in asked[m, n]] for m in methods}

    def domain_of(one: Answered) -> str:
        return file.concepts[one.case.forget[0]].domain

    # A thing can be absent, a colour cannot: what is said differs by domain.
    domains = {
        domain: among
        for domain in file.domains()
        if (among := [name for name in names if file.concepts[name].domain == domain])
    }
    by_domain = {
        f"{OURS}, {domain}": mine
        for domain in domains
        if OURS in methods and len(domains) > 1
        if (mine := [one for one in said[OURS] if domain_of(one) == domain])
    }
    return Results(
        alone=alone,
        domains=domains,
        means={m: means(list(found.values())) for m, found in alone.items()},
        instead={m: _instead(some, file) for m, some in (said | by_domain).items()},
        false={m: _false(some, file) for m, some in (said | by_domain).items()},
        worst={m: _worst([watched.get((m, n), []) for n in names]) for m in methods},
        away={m: _away([asked[m, n] for n in names], denied[m]) for m in methods},
        together={group: _together(found, file) for group, found in sets.items()},
    )


def _counting(found: Sequence[Answered]) -> list[Answered]:
    """Leave out prompts whose answer says nothing of the concept unedited."""
    kept = [one for one in found if _counts(one)]
    named = any(one.case.question.part is Part.UAG for one in kept)
    return kept if named else list(found)


def _counts(one: Answered) -> bool:
    question = one.case.question
    return not question.optional or question.right(one.plain.text, one.plain.text)


def _scores(found: Sequence[Answered]) -> Figures:
    """Return one concept's scores; intervals by a bootstrap over its examples."""
    counts = Counter(one.case.question.part for one in found)
    cra = counts[Part.CRA_SHOWN] + counts[Part.CRA_OTHER]
    n = {"UAg": counts[Part.UAG], "UAd": counts[Part.UAD], "IRA": counts[Part.IRA]}
    n |= {"CRA": cra, "HM": len(found), "malformed": len(found)}
    values = _bootstrap(found)
    return {
        name: Figure(*values[name], n[name]) if name in values else NOTHING_ASKED
        for name in SCORES
    }


def _values(found: Sequence[Answered]) -> dict[str, float]:
    scores = outcome(
        [one.case.question for one in found],
        [float(one.right) for one in found],
        [one.malformed for one in found],
    )
    return {n: value for n, value in scores.to_json().items() if value is not None}


def _bootstrap(
    found: Sequence[Answered],
) -> dict[str, tuple[float, float, float]]:
    """Return each score with its interval, examples drawn anew."""
    clusters: dict[object, list[Answered]] = {}
    for one in found:
        question = one.case.question
        shown = question.picture
        key = question.prompt if shown is None else id(shown)
        clusters.setdefault(key, []).append(one)
    groups, rng = list(clusters.values()), random.Random(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(REPLICATES):
        some = [one for group in rng.choices(groups, k=len(groups)) for one in group]
        try:
            values = _values(some)
        except ConfigError:
            continue  # It drew no question of a kind.
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    best = _values(found)
    return {name: (best[name], *_interval(drawn.get(name, ()))) for name in best}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    at = len(ordered) - 1
    return ordered[round(0.025 * at)], ordered[round(0.975 * at)]


def means(found: Sequence[Figures]) -> Figures:
    """Return a method's means over concepts; intervals by a bootstrap over concepts."""
    rng, shown = random.Random(0), {}
    for name in SCORES:
        some = [one[name] for one in found if one[name].n]
        n = sum(figure.n for figure in some)
        shown[name] = _over_concepts([figure.value for figure in some], n, rng)
    return shown


def _over_concepts(
    values: Sequence[float], n: int, rng: random.Random | None = None
) -> Figure:
    """Return a mean; the interval by a bootstrap over concepts."""
    if not values:
        return NOTHING_ASKED
    rng = rng or random.Random(0)
    drawn = [mean(rng.choices(values, k=len(values))) for _ in range(1000)]
    return Figure(mean(values), *_interval(drawn), n)


def _worst(found: Sequence[Sequence[Answered]]) -> Figure:
    values = [v for some in found if (v := worst_other(some)) is not None]
    return _over_concepts(values, sum(map(len, found)))


def _away(
    found: Sequence[Sequence[Answered]], denied: Sequence[Answered]
) -> dict[str, Figure]:
    """Return what tells of a concept: its word's probability, and elimination."""
    leaks = [leak for some in found if (leak := leaked(some)) is not None]
    n = sum(leak.n for leak in leaks)
    return {
        "p(word)": _over_concepts([leak.probability for leak in leaks], n),
        "told apart": _over_concepts([leak.auc for leak in leaks], n),
        "eliminated": wilson(given_away(denied, True)),
        "eliminated, without": wilson(given_away(denied, False)),
    }


def wilson(marks: Sequence[bool]) -> Figure:
    """Return a share and its 95 % interval, Wilson's."""
    n = len(marks)
    if not n:
        return NOTHING_ASKED
    p, z = sum(marks) / n, 1.96
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return Figure(p, max(0.0, low), min(1.0, high), n)


def _instead(found: Sequence[Answered], file: ConceptFile) -> dict[str, Figure]:
    """Return what is said where a concept that is shown is to be named."""
    said = [
        _kind_of(one, file)
        for one in found
        if one.case.question.part is Part.UAG and not one.case.question.optional
    ]
    kinds = ("itself", "none", "another", "else", "malformed")
    return {kind: wilson([one == kind for one in said]) for kind in kinds}


def _kind_of(one: Answered, file: ConceptFile) -> str:
    concept = file.concepts[one.case.question.about]
    if one.malformed:
        return "malformed"
    if one.right:
        return "itself"
    if first_word(one.answer.text) in NONE:
        return "none"
    others = (c for c in file.concepts.values() if c.domain == concept.domain)
    named = any(mentions(one.answer.text, other.answers) for other in others)
    return "another" if named else "else"


def _false(found: Sequence[Answered], file: ConceptFile) -> Figure:
    """Return how many answers to examples' own prompts name what is not shown."""
    return wilson(
        [
            any(
                mentions(one.answer.text, other.answers)
                for other in file.concepts.values()
                if other.name not in one.case.question.shown
            )
            for one in found
            if one.case.question.optional
        ]
    )


def _together(found: Sequence[Answered], file: ConceptFile) -> Figures:
    def share(kinds: tuple[Kind, ...], forgotten: bool) -> Figure:
        return wilson(
            [
                _forgot(one, file) if forgotten else one.good
                for one in found
                if one.case.question.kind in kinds
                and (one.case.question.about in one.case.forget) == forgotten
                and _counts(one)
            ]
        )

    prompts = [
        one.good
        for one in found
        if one.case.question.kind is Kind.KEEP
        and not {*one.case.question.shown} & {*one.case.forget}
    ]

    return {
        "forgotten name": share((Kind.NAME,), True),
        "forgotten yes/no": share((Kind.YES,), True),
        "kept name": share((Kind.NAME,), False),
        "kept yes": share((Kind.YES,), False),
        "kept no": share((Kind.NO,), False),
        "kept texts": wilson(prompts),
        "malformed": wilson([one.malformed for one in found]),
    }


def _forgot(one: Answered, file: ConceptFile) -> bool:
    question = one.case.question
    if one.malformed:
        return False
    if question.kind is Kind.NAME:
        return not one.right
    # Neither yes nor no is no denial.
    no = file.concepts[question.about].questions.no
    return first_word(one.answer.text) == first_word(no)
