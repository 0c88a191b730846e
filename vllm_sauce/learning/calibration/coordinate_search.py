# SPDX-License-Identifier: Apache-2.0
"""Coordinate searches of many concepts in step, so that their trials share batches."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence

from vllm_sauce.errors import ConfigError

Setting = tuple[tuple[str, object], ...]
"""One value for every coordinate of a grid, in the grid's order."""

Point = Mapping[str, Hashable]
Round = Generator[list[Setting], dict[Setting, float], dict[Setting, float]]
"""Yields settings, is sent their scores, returns all scores."""


def setting_of(point: Point, grid: Mapping[str, Sequence[Hashable]]) -> Setting:
    """Return a point as its values in the grid's order."""
    return tuple((name, point[name]) for name in grid)


def coordinate_rounds(
    grid: Mapping[str, Sequence[Hashable]],
    starts: Sequence[Point],
    passes: int = 2,
) -> Round:
    """Search a grid, a whole coordinate at a time; nothing is asked for twice.

    First the starts are tried; from the best one, each coordinate in turn takes its
    best value while the others stay, until a pass changes nothing. Of equals the
    present value stays.

    Raises: ConfigError if a start does not fit the grid
    """
    for start in starts:
        if set(start) != set(grid) or any(start[n] not in grid[n] for n in grid):
            raise ConfigError(f"start {dict(start)} is no point of {dict(grid)}")
    if not starts:
        raise ConfigError("a search needs a start")
    scores: dict[Setting, float] = {}

    def ask(points: Sequence[Point]) -> Generator[list[Setting], dict[Setting, float]]:
        new = [
            s
            for s in dict.fromkeys(setting_of(p, grid) for p in points)
            if s not in scores
        ]
        if new:
            scores.update((yield new))

    yield from ask(starts)
    best: Point = max(starts, key=lambda start: scores[setting_of(start, grid)])
    for _ in range(passes):
        before = dict(best)
        for name, values in grid.items():
            order = [best[name], *(value for value in values if value != best[name])]
            points: list[Point] = [{**best, name: value} for value in order]
            yield from ask(points)
            best = max(points, key=lambda point: scores[setting_of(point, grid)])
        if dict(best) == before:
            break
    return scores


def in_step(
    searches: Mapping[str, Round],
) -> Generator[
    dict[str, list[Setting]],
    Mapping[str, dict[Setting, float]],
    dict[str, dict[Setting, float]],
]:
    """Advance all searches together: yields what each wants, is sent their scores."""
    results: dict[str, dict[Setting, float]] = {}
    wanted: dict[str, list[Setting]] = {}

    def advance(name: str, scores: dict[Setting, float] | None) -> None:
        try:
            search = searches[name]
            wanted[name] = next(search) if scores is None else search.send(scores)
        except StopIteration as stop:
            results[name] = stop.value

    for name in searches:
        advance(name, None)
    while wanted:
        asked, found = dict(wanted), (yield dict(wanted))
        wanted.clear()
        for name in asked:
            advance(name, found[name])
    return results
