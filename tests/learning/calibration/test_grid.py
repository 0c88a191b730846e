# SPDX-License-Identifier: Apache-2.0
"""What a search may choose from at a site, and what it may not."""

from dataclasses import replace
from typing import Any

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


def test_rankings_can_be_narrowed():
    wanted = {"rankings": ("crisp", "file")}
    assert grid_of(selected([5]), **wanted).rankings == ("crisp", "file")
    assert grid_of(selected([5], crisp=False), **wanted).rankings == ("file",)
    with pytest.raises(ConfigError, match="decoder.1.*file, share, rate, not by crisp"):
        grid_of(selected([5], crisp=False), rankings=("crisp",))


def test_gates_that_are_not_measured_are_refused():
    with pytest.raises(ConfigError, match=r"a gate is one of 0.0, 0.9, .*got 0.5"):
        grid_of(selected([5]), gates=(0.0, 0.5))


def with_rows(*kinds):
    """A concept with latents 5 and 3, and a row of each kind behind them."""
    found = selected([5, 3])
    rows = [
        one.model_copy(update={"latent": 100 + n, "scores": {f"row:{kind}": 1.0}})
        for n, (one, kind) in enumerate(
            zip(selected(range(len(kinds))).latents, kinds, strict=True)
        )
    ]
    return found.model_copy(update={"rows": rows})


def test_rows_have_a_grid_of_their_own():
    found = with_rows("others", "words", "before")
    wanted: dict[str, Any] = {"row_shares": (1.0, 2.0), "row_gates": (0.5,)}
    grid = SiteGrid.of_rows("decoder.1", found, CalibrationConfig(**wanted))
    assert grid.rankings == ("row:others", "row:words", "row:before")
    assert (grid.k, grid.gates) == ((1,), (0.5,))
    assert [one.text for one in grid.actions] == ["scale 0", "scale -1"]
    narrow = CalibrationConfig(**wanted, row_kinds=("before", "words"))
    grid = SiteGrid.of_rows("decoder.1", found, narrow)
    assert grid.rankings == ("row:words", "row:before")
    # A concept that has none of the kinds wanted is not left out.
    other = SiteGrid.of_rows("decoder.1", with_rows("others"), narrow)
    assert other.rankings == ("row:others",)
    # What a row reads has a scale; a latent's gate is a share of tokens.
    edit = replace(grid.start(), ranking="row:others").edit_of(found.rows[:1])
    assert edit.gate == (0.5,)
    (gate,) = grid_of(found).start().edit_of(found.latents[:1]).gate
    assert gate == pytest.approx(1.01 * found.latents[0].quiet["0.99"])


def test_gates_of_rows_that_make_no_sense():
    with pytest.raises(ConfigError, match="row_gates lie in"):
        CalibrationConfig(row_gates=(-0.1,))
