# SPDX-License-Identifier: Apache-2.0
"""What an edit takes along, and what gives a forgotten concept away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from vllm_sauce.evaluation.questions import first_word
from vllm_sauce.measuring.answers import Answered


def worst_other(found: Sequence[Answered]) -> float | None:
    """Return how much the other concept that lost most has lost, without its luck.

    Which one that is, half of its answers say, and how much, the other half: the
    largest of many noisy losses is larger than it is. Mean of both ways round; None
    where no concept was asked for twice.

    ``found``: answers that name other concepts, one concept forgotten.
    """
    halves: tuple[dict[str, list[float]], ...] = ({}, {})
    asked: dict[str, int] = {}
    for one in found:
        about = one.case.question.about
        number = asked[about] = asked.get(about, -1) + 1
        before = one.case.question.right(one.plain.text, one.plain.text)
        halves[number % 2].setdefault(about, []).append(float(before) - one.good)
    losses = [{name: fmean(some) for name, some in half.items()} for half in halves]
    names = sorted(set(losses[0]) & set(losses[1]))
    if not names:
        return None
    ways = ((losses[0], losses[1]), (losses[1], losses[0]))
    return fmean(tells[max(names, key=chooses.__getitem__)] for chooses, tells in ways)


class Leak(NamedTuple):
    """What the first token's probabilities tell of one forgotten concept."""

    probability: float
    """That it is named where it is; mean over pictures with it."""
    auc: float
    """That it is likelier on a picture with it than on one without."""
    n: int
    """Of how many answers."""


def leaked(found: Sequence[Answered]) -> Leak | None:
    """Return what a concept's word gives away; None where it was not read.

    ``found``: answers where a concept of its domain is to be named. Those count which
    begin with the name, unedited: in a sentence the first token tells nothing.
    """
    read: dict[bool, list[float]] = {True: [], False: []}
    for one in found:
        question = one.case.question
        names = map(first_word, question.words)
        if one.leak is not None and first_word(one.plain.text) in names:
            read[one.case.forget[0] in question.shown].append(one.leak)
    shown, absent = read[True], read[False]
    if not shown or not absent:
        return None
    above = [(s > a) + 0.5 * (s == a) for s in shown for a in absent]
    return Leak(fmean(map(math.exp, shown)), fmean(above), len(shown) + len(absent))


def given_away(found: Sequence[Answered], shown: bool) -> list[bool]:
    """Say of each picture, with the concept or without, whether all is denied but it.

    ``found``: answers whether each other concept of its domain is there.
    """
    pictures: dict[tuple[str, int], list[bool]] = {}
    for one in found:
        question, (name,) = one.case.question, one.case.forget
        if (name in question.shown) == shown:
            said = first_word(one.answer.text) == first_word(question.words[0])
            pictures.setdefault((name, id(question.picture)), []).append(said)
    return [all(denied) for denied in pictures.values()]
