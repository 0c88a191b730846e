# SPDX-License-Identifier: Apache-2.0
"""How a concept's settings are searched: each site alone, pairs, then everything.

A search of all sites from one start ends where that start leads: what is good at one
site alone is found only where the other one is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import combinations, product

from vllm_sauce.learning.calibration.grid import SiteAxis, SiteGrid
from vllm_sauce.learning.calibration.setting import Setting, SiteSetting

Scores = Mapping[Setting, float]
Round = Generator[list[Setting], Scores, dict[Setting, float]]
"""Yields settings, is sent their scores, returns all scores."""

Axis = Callable[[Setting], Sequence[Setting]]
"""From a setting: all values of one choice at one site, all else as it is."""

PARTNERS = slice(0, 7, 3)
"""Which of a site's settings, best first, are tried with another's: a weaker edit may
be the better one once both act."""


def site_rounds(grids: Sequence[SiteGrid], passes: int) -> Round:
    """Search the grids of a concept's sites.

    Each site alone, ``passes`` times; pairs of good settings of two sites; from the
    best of all, every axis of every site once more.
    """
    scores: dict[Setting, float] = {}
    alone: list[list[SiteSetting]] = []
    for grid in grids:
        found = yield from coordinate_rounds((grid.start(),), _axes([grid]), passes)
        best_first = sorted(found, key=found.__getitem__, reverse=True)
        alone.append([mine for (mine,) in best_first])
        scores |= found
    if len(grids) == 1:
        return scores
    scores |= yield [
        pair
        for sites in combinations(alone, 2)
        for pair in product(*(settings[PARTNERS] for settings in sites))
    ]
    best = max(scores, key=scores.__getitem__)
    scores |= yield from coordinate_rounds(best, _axes(grids, may_rest=True), 1)
    return scores


def most_settings(values: Sequence[int], sites: int, passes: int) -> int:
    """Return how many settings ``site_rounds`` asks for at most.

    ``values``: how many each axis of a site has.
    """
    # The present value of each is known.
    more = sum(count - 1 for count in values)
    alone, pairs = sites * (1 + passes * more), sites * (sites - 1) // 2
    each = len(range(PARTNERS.stop)[PARTNERS]) ** 2
    # From the best of these, all sites once more, each of which may be left alone.
    return alone + (each * pairs + 1 + sites * (more + 1) if pairs else 0)


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


def _axes(grids: Sequence[SiteGrid], *, may_rest: bool = False) -> list[Axis]:
    """Return the axes of all sites, for whole settings."""
    order = [grid.site for grid in grids]

    def at_site(site: str, axis: SiteAxis) -> Axis:
        def along(setting: Setting) -> list[Setting]:
            here: dict[str, SiteSetting | None] = {one.site: one for one in setting}
            changed = (here | {site: value} for value in axis(here.get(site)))
            return [tuple(_edited(values, order)) for values in changed]

        return along

    return [
        at_site(grid.site, axis)
        for grid in grids
        for axis in grid.axes(may_rest=may_rest)
    ]


def _edited(
    values: Mapping[str, SiteSetting | None], order: Sequence[str]
) -> Iterator[SiteSetting]:
    for site in order:
        if (one := values.get(site)) is not None:
            yield one
