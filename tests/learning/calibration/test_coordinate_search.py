# SPDX-License-Identifier: Apache-2.0
"""Searches in step find what one search after another finds."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.coordinate_search import (
    Setting,
    coordinate_rounds,
    in_step,
    setting_of,
)

GRID = {"a": (0, 1, 2), "b": ("x", "y"), "c": (0.0, 0.5, 1.0, 2.0)}


def score(table, setting):
    """Any function of a setting, with ties."""
    return float(zlib.crc32(repr((table, setting)).encode()) % 7)


def run(searches, tables):
    step, rounds = in_step(searches), []
    try:
        wanted = next(step)
        while True:
            rounds.append(wanted)
            wanted = step.send(
                {
                    name: {s: score(tables[name], s) for s in some}
                    for name, some in wanted.items()
                }
            )
    except StopIteration as stop:
        return stop.value, rounds


def search_alone(start, evaluate, passes=2):
    """Search one coordinate after another, one point at a time; a tie does not move."""
    scores: dict[Setting, float] = {}

    def ask(point):
        setting = setting_of(point, GRID)
        scores.setdefault(setting, evaluate(point))
        return scores[setting]

    best = dict(start)
    for _ in range(passes):
        before = dict(best)
        for name, values in GRID.items():
            order = [best[name], *(value for value in values if value != best[name])]
            best[name] = max(order, key=lambda value, n=name: ask({**best, n: value}))
        if best == before:
            break
    return scores


points = st.fixed_dictionaries({n: st.sampled_from(v) for n, v in GRID.items()})


@settings(max_examples=80, deadline=None, derandomize=True)
@given(starts=st.lists(points, min_size=1, max_size=3), table=st.integers(0, 999))
def test_each_search_finds_what_it_finds_alone(starts, table):
    names = [f"s{i}" for i in range(len(starts))]
    tables = {name: table + i for i, name in enumerate(names)}
    searches = {
        name: coordinate_rounds(GRID, [start])
        for name, start in zip(names, starts, strict=True)
    }
    results, rounds = run(searches, tables)
    for name, start in zip(names, starts, strict=True):
        alone = search_alone(
            start, lambda p, n=name: score(tables[n], setting_of(p, GRID))
        )
        assert results[name] == alone
    asked = [(name, s) for r in rounds for name, some in r.items() for s in some]
    assert len(asked) == len(set(asked))


def test_the_best_start_is_where_it_goes_on():
    low, high = ({"a": a, "b": "x", "c": 0.0} for a in (0, 2))
    search = coordinate_rounds(GRID, [low, high], passes=1)
    wanted = next(search)
    assert [dict(s)["a"] for s in wanted] == [0, 2]
    wanted = search.send({s: dict(s)["a"] for s in wanted})
    assert [dict(s)["a"] for s in wanted] == [1]
    wanted = search.send({s: 0.0 for s in wanted})
    assert {dict(s)["a"] for s in wanted} == {2}


@pytest.mark.parametrize("start", [{"a": 9, "b": "x", "c": 0.0}, {"a": 0}])
def test_a_start_off_the_grid_is_refused(start):
    with pytest.raises(ConfigError, match="is no point"):
        next(coordinate_rounds(GRID, [start]))
    with pytest.raises(ConfigError, match="needs a start"):
        next(coordinate_rounds(GRID, []))
