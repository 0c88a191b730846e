# SPDX-License-Identifier: Apache-2.0
"""What a search may choose from at a site, and what it may not."""

import pytest

from tests.learning.calibration.selected_latents import selected
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.grid import SiteGrid

CONFIG = {"k": (1, 2, 99), "gates": (0.0, 0.99), "actions": ("scale 0", "scale -4")}


def grid_of(found, **changes):
    config = CalibrationConfig(**{**CONFIG, **changes})
    return SiteGrid.of("decoder.1", "dog", found, config)


def test_the_grid_has_what_a_site_can_do():
    grid = grid_of(selected([5, 3, 8]))
    assert grid.k == (1, 2)
    assert grid.rankings == ("file", "share", "rate", "crisp")
    # Here crisp chooses nothing.
    assert grid_of(selected([1, 2], crisp=False)).rankings == ("file", "share", "rate")
    assert grid_of(selected([1, 2]), k=(9,)).k == (2,)


@pytest.mark.parametrize("may_rest", [True, False])
def test_axes_hold_all_values_and_the_start_is_one(may_rest):
    grid = grid_of(selected([5, 3, 8]))
    start = grid.start()
    for axis, count in zip(
        grid.axes(may_rest=may_rest), (4, 2, 2, 2 + may_rest), strict=True
    ):
        found = axis(start)
        assert start in found and len(set(found)) == len(found) == count
        assert (None in found) == (may_rest and count == 3)


def test_a_site_that_rests_may_only_be_edited_again():
    *others, actions = grid_of(selected([5, 3, 8])).axes(may_rest=True)
    assert all(set(axis(None)) == {None} for axis in others)
    rest, *again = actions(None)
    assert rest is None and [one.action.text for one in again] == [
        "scale 0",
        "scale -4",
    ]


def test_rankings_can_be_narrowed():
    wanted = {"rankings": ("crisp", "file")}
    assert grid_of(selected([5]), **wanted).rankings == ("crisp", "file")
    assert grid_of(selected([5], crisp=False), **wanted).rankings == ("file",)
    with pytest.raises(ConfigError, match="decoder.1.*file, share, rate, not by crisp"):
        grid_of(selected([5], crisp=False), rankings=("crisp",))


def test_gates_that_are_not_measured_are_refused():
    with pytest.raises(ConfigError, match=r"a gate is one of 0.0, 0.9, .*got 0.5"):
        grid_of(selected([5]), gates=(0.0, 0.5))
