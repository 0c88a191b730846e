# SPDX-License-Identifier: Apache-2.0
"""One concept's search: each site alone, sites together, then everything at once.

A search of all sites from one start ends where that start leads: what is good at one
site alone is found only where the other one is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

from vllm_sauce.learning.calibration.coordinate_search import (
    Point,
    Round,
    Setting,
    coordinate_rounds,
)
from vllm_sauce.learning.calibration.edit_choices import OFF, EditChoices

PARTNERS = slice(0, 7, 3)
"""Which of a site's settings, best first, are tried with another's: a weaker edit may
be the better one once both act."""


def site_rounds(choices: EditChoices, passes: int) -> Round:
    """Search a concept's grid; yields settings, is sent their scores, returns all.

    Each site alone, ``passes`` times; pairs of good settings of two sites; from the
    best of all, every coordinate of every site once more.
    """
    scores: dict[Setting, float] = {}
    alone: dict[str, list[Setting]] = {}
    for site, start in zip(choices.sites(), choices.starts, strict=True):
        grid = {
            name: tuple(value for value in values if value != OFF)
            if name.startswith(f"{site} ")
            else (start[name],)
            for name, values in choices.grid.items()
        }
        found = yield from coordinate_rounds(grid, [start], passes)
        alone[site] = sorted(found, key=lambda setting: -found[setting])
        scores |= found
    if len(alone) == 1:
        return scores
    pairs = list(_pairs(choices, alone))
    scores |= yield pairs
    best: Point = dict(max(scores, key=scores.__getitem__))  # type: ignore[arg-type]
    scores |= yield from coordinate_rounds(choices.grid, [best], 1)
    return scores


def _pairs(choices: EditChoices, alone: dict[str, list[Setting]]) -> Iterator[Setting]:
    for sites in combinations(alone, 2):
        mine = [
            [choices.at(setting)[site] for setting in alone[site][PARTNERS]]
            for site in sites
        ]
        for both in product(*mine):
            yield choices.setting(dict(zip(sites, both, strict=True)))
