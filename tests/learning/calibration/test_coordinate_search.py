# SPDX-License-Identifier: Apache-2.0
"""Searches in step find what one after another finds, at one site, two, or both."""

import zlib
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.learning.calibration.coordinate_search import (
    coordinate_rounds,
    in_step,
    most_settings,
    site_axes,
    site_rounds,
    stronger,
)
from vllm_sauce.learning.calibration.grid import SiteGrid
from vllm_sauce.learning.calibration.setting import Action, Setting

GRID = {"a": (0, 1, 2), "b": ("x", "y"), "c": (0.0, 0.5, 1.0, 2.0)}


def setting_of(point):
    return tuple((name, point[name]) for name in GRID)


def along(name, setting):
    return [setting_of({**dict(setting), name: value}) for value in GRID[name]]


AXES = [partial(along, name) for name in GRID]


def score(table, setting):
    """Any function of a setting, with ties."""
    return float(zlib.crc32(repr((table, setting)).encode()) % 7)


def search_alone(start, evaluate, passes=2):
    """Search one coordinate after another, one point at a time; a tie does not move."""
    scores: dict[Setting, float] = {}

    def ask(point):
        setting = setting_of(point)
        scores.setdefault(setting, evaluate(setting))
        return scores[setting]

    best = dict(start)
    ask(best)
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
    tables = {f"s{i}": table + i for i in range(len(starts))}
    started = dict(zip(tables, starts, strict=True))
    asked: list[tuple[str, Setting]] = []

    def ask(wanted):
        asked.extend((name, one) for name, some in wanted.items() for one in some)
        return {
            name: {one: score(tables[name], one) for one in some}
            for name, some in wanted.items()
        }

    results = in_step(
        {n: coordinate_rounds(setting_of(s), AXES, 2) for n, s in started.items()}, ask
    )
    assert set(results) == set(started)
    for name, start in started.items():
        assert results[name] == search_alone(start, partial(score, tables[name]))
    assert len(asked) == len(set(asked))


ACTIONS = ("scale 0", "scale -1", "scale -4")


def grids_of(*sites):
    return [
        SiteGrid(
            site=site,
            rankings=("file", "share"),
            k=(1, 4, 8),
            gates=(0.0,),
            actions=tuple(map(Action.parse, ACTIONS)),
        )
        for site in sites
    ]


@pytest.mark.parametrize("may_rest", [True, False])
def test_axes_hold_all_values_and_the_start_is_one(may_rest):
    (grid,) = grids_of("vision")
    start = (grid.start(),)
    counts = (2, 3, 1, 3 + may_rest)
    for axis, count in zip(site_axes([grid], may_rest=may_rest), counts, strict=True):
        found = axis(start)
        assert start in found and len(set(found)) == len(found) == count
        assert (() in found) == (may_rest and count == 4)


def test_a_site_that_rests_may_only_be_edited_again():
    *others, actions = site_axes(grids_of("vision"), may_rest=True)
    assert not any(axis(()) for axis in others)
    rest, *again = actions(())
    assert rest == () and [one.action.text for (one,) in again] == list(ACTIONS)


def search(grids, score, passes=2):
    """Return all scores, and the settings of each round."""
    rounds = site_rounds(grids, passes)
    asked = [next(rounds)]
    try:
        while True:
            asked.append(rounds.send({one: score(one) for one in asked[-1]}))
    except StopIteration as stop:
        return stop.value, asked


def strength(setting):
    """How much each site does: k times how far down."""
    return {one.site: one.k * (1 - one.action.amount) for one in setting}


@pytest.mark.parametrize(
    "wanted",
    [
        {"vision": 16.0},
        {"decoder.1": 40.0},
        {"vision": 8.0, "decoder.1": 1.0},
        {"vision": 40.0, "decoder.1": 40.0},
    ],
)
def test_it_finds_what_is_wanted_at_each_site(wanted):
    def score(setting):
        done = strength(setting)
        return -sum(
            abs(done.get(s, 0.0) - wanted.get(s, 0.0)) for s in ("vision", "decoder.1")
        )

    scores, asked = search(grids_of("vision", "decoder.1"), score)
    best = max(scores, key=scores.__getitem__)
    assert strength(best) == wanted
    assert set(scores) == {one for some in asked for one in some}


def test_each_site_is_searched_alone_before_any_pair():
    _, asked = search(grids_of("vision", "decoder.1"), lambda one: float(len(one)))
    on = [{tuple(s.site for s in one) for one in some} for some in asked]
    first_pair = next(i for i, some in enumerate(on) if ("vision", "decoder.1") in some)
    assert {site for some in on[:first_pair] for (site,) in some} == {
        "vision",
        "decoder.1",
    }
    assert on[first_pair] == {("vision", "decoder.1")}
    assert 1 < len(asked[first_pair]) <= 9


def test_a_site_that_is_left_alone_is_tried_again_at_the_end():
    """Each of its actions, and nothing of a site that does nothing."""
    vision_alone = {("vision",): 1.0}
    scores, asked = search(
        grids_of("vision", "decoder.1"),
        lambda one: vision_alone.get(tuple(s.site for s in one), 0.0),
    )
    assert asked[-1] == [
        one for one in asked[-1] if {s.site for s in one} == {"vision", "decoder.1"}
    ]
    assert len(asked[-1]) == len(ACTIONS)
    assert () in scores


def test_one_site_has_no_pairs():
    scores, asked = search(grids_of("vision"), lambda one: strength(one)["vision"])
    assert all(len(one) == 1 for one in scores)
    best = max(scores, key=scores.__getitem__)
    assert strength(best) == {"vision": 40.0}
    assert len(asked) <= 9


@pytest.mark.parametrize("sites", [("vision",), ("vision", "decoder.1"), "abc"])
def test_a_search_that_always_finds_something_better_asks_most(sites):
    rising = iter(range(10_000))
    _, asked = search(grids_of(*sites), lambda one: float(next(rising)))
    most = most_settings([(2, 3, 1, 3)], len(sites), passes=2)
    assert 0.9 * most <= sum(map(len, asked)) <= most


def test_the_next_stronger_settings_are_a_step_along_each_axis():
    """More latents, or more of each, or a lower gate; a second site at its weakest."""
    first, second = grids_of("vision", "decoder.1")
    gated = replace(first, gates=(0.0, 0.5, 0.9))
    now = replace(gated.start(), k=4, gate=0.5, action=Action.parse("scale -1"))
    weakest = replace(second.start(), action=Action.parse("scale 0"))
    assert set(stronger((now,), [gated, second])) == {
        (replace(now, k=8),),
        (replace(now, gate=0.0),),
        (replace(now, action=Action.parse("scale -4")),),
        (now, weakest),
    }
    most = replace(now, k=8, gate=0.0, action=Action.parse("scale -4"))
    assert stronger((most,), [gated]) == []
