# SPDX-License-Identifier: Apache-2.0
"""How a concept's settings are searched: each site alone, pairs, then everything.

A search of all sites from one start ends where that start leads: what is good at one
site alone is found only where the other one is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product

from vllm_sauce.learning.calibration.grid import ACTION, SiteGrid
from vllm_sauce.learning.calibration.setting import (
    Setting,
    SiteSetting,
    taken_away,
)

Scores = Mapping[Setting, float]
Round = Generator[list[Setting], Scores, dict[Setting, float]]
"""Yields settings, is sent their scores, returns all scores."""

Axis = Callable[[Setting], Sequence[Setting]]
"""From a setting: all values of one choice at one site, all else as it is."""

PARTNERS = slice(0, 7, 3)
"""Which of a site's settings, best first, are tried with another's: a weaker edit may
be the better one once both act."""


STEPS = 4
"""How often a stronger edit is tried of a concept that is not surely forgotten."""


def site_rounds(grids: Sequence[SiteGrid], passes: int) -> Round:
    """Search the grids of a concept's sites; a site may have several.

    Each grid alone, ``passes`` times; pairs of good settings of two sites; from the
    best of all, every axis of every site once more.
    """
    scores: dict[Setting, float] = {}
    alone: dict[str, dict[SiteSetting, float]] = {}
    for grid in grids:
        found = yield from coordinate_rounds((grid.start(),), site_axes([grid]), passes)
        here = alone.setdefault(grid.site, {})
        here |= {mine: score for (mine,), score in found.items()}
        scores |= found
    if len(alone) == 1:
        return scores
    good = [
        sorted(h, key=h.__getitem__, reverse=True)[PARTNERS] for h in alone.values()
    ]
    scores |= yield [
        pair for sites in combinations(good, 2) for pair in product(*sites)
    ]
    best = max(scores, key=scores.__getitem__)
    scores |= yield from coordinate_rounds(best, site_axes(grids, may_rest=True), 1)
    return scores


def most_settings(grids: Sequence[Sequence[int]], sites: int, passes: int) -> int:
    """Return how many settings ``site_rounds`` asks for at most.

    ``grids``: of those of a site, how many values each axis has.
    """
    # The present value of each is known.
    more = [sum(count - 1 for count in values) for values in grids]
    alone = sites * sum(1 + passes * count for count in more)
    pairs = sites * (sites - 1) // 2
    each = len(range(PARTNERS.stop)[PARTNERS]) ** 2
    # From the best of these, all sites once more, each of which may be left alone.
    last = 1 + sites * sum(1 + count for count in more)
    return alone + (each * pairs + last if pairs else 0)


def stronger(setting: Setting, grids: Sequence[SiteGrid]) -> list[Setting]:
    """Return the next stronger setting along each axis, where there is one.

    A site that is left alone is edited as weakly as may be.
    """
    found: dict[Setting, None] = {}
    for axis in site_axes(grids):
        more = [one for one in axis(setting) if taken_away(one) > taken_away(setting)]
        if more:
            found[min(more, key=taken_away)] = None
    return list(found)


def coordinate_rounds(start: Setting, axes: Sequence[Axis], passes: int) -> Round:
    """Search from a start, a whole axis at a time; nothing is asked for twice.

    Each axis in turn takes its best value while the others stay, until a pass changes
    nothing. Of equals the present value stays.
    """
    scores: dict[Setting, float] = {}

    def best_of(
        settings: Sequence[Setting],
    ) -> Generator[list[Setting], Scores, Setting]:
        if new := [one for one in dict.fromkeys(settings) if one not in scores]:
            scores.update((yield new))
        return max(settings, key=scores.__getitem__)

    best = yield from best_of([start])
    for _ in range(passes):
        before = best
        for axis in axes:
            best = yield from best_of([best, *axis(best)])
        if best == before:
            break
    return scores


def in_step(
    searches: Mapping[str, Round],
    ask: Callable[[Mapping[str, list[Setting]]], Mapping[str, Scores]],
) -> dict[str, dict[Setting, float]]:
    """Run searches to their ends, a round of each at a time: trials share batches.

    ``ask`` is told what each wants and returns the scores; returned is all that each
    search found.
    """
    results: dict[str, dict[Setting, float]] = {}
    wanted = {name: next(search) for name, search in searches.items()}
    while wanted:
        found = ask(dict(wanted))
        for name in list(wanted):
            try:
                wanted[name] = searches[name].send(found[name])
            except StopIteration as end:
                results[name] = end.value
                del wanted[name]
    return results


def site_axes(grids: Sequence[SiteGrid], *, may_rest: bool = False) -> list[Axis]:
    """Return the axes of all sites; ``may_rest``: sites may be left alone, too."""
    order = tuple(dict.fromkeys(grid.site for grid in grids))

    def along(grid: SiteGrid, field: str, setting: Setting) -> list[Setting]:
        here: dict[str, SiteSetting | None] = {one.site: one for one in setting}
        present = here.get(grid.site)
        if present is not None and present.ranking not in grid.rankings:
            return []  # another grid's
        if present is None and field != ACTION:
            return []
        values = grid.axes()[field]
        edited = [replace(present or grid.start(), **{field: v}) for v in values]
        rest = [None] if may_rest and field == ACTION else []
        changed = [here | {grid.site: one} for one in (*rest, *edited)]
        return [tuple(filter(None, map(one.get, order))) for one in changed]

    return [partial(along, grid, field) for grid in grids for field in grid.axes()]
