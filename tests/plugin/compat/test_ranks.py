# SPDX-License-Identifier: Apache-2.0
"""What one rank finds wrong, all raise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import CanaryError, ConfigError
from vllm_sauce.plugin.compat import ranks


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str | None]]:
    """What the other ranks of each of this rank's groups say in a vote."""
    others: dict[str, list[str | None]] = {"tp": [None], "pp": [None]}

    def group(name: str) -> Any:
        return SimpleNamespace(name=name, ranks=[4, 5])

    monkeypatch.setattr(ranks, "_group", group)
    monkeypatch.setattr(
        ranks, "all_gathered", lambda group, mine: [mine, *others[group.name]]
    )
    return others


@pytest.mark.parametrize("stages", [False, True])
def test_where_all_is_well_nothing_is_raised(
    said: dict[str, list[str | None]], stages: bool
) -> None:
    with ranks.together(stages=stages):
        pass


def test_another_ranks_error_is_raised_here(said: dict[str, list[str | None]]) -> None:
    said["tp"] = ["site decoder.1: wrong"]
    with (
        pytest.raises(CanaryError, match="^rank 5: site decoder.1: wrong$"),
        ranks.together(),
    ):
        pass


def test_another_stages_error_is_raised_where_all_stages_vote(
    said: dict[str, list[str | None]],
) -> None:
    said["pp"] = ["wrong"]
    with ranks.together():
        pass
    with (
        pytest.raises(CanaryError, match="^rank 5: wrong$"),
        ranks.together(stages=True),
    ):
        pass


def test_ones_own_error_stays_what_it_is(said: dict[str, list[str | None]]) -> None:
    said["tp"] = ["wrong, too"]
    with pytest.raises(ConfigError, match="mine"), ranks.together(stages=True):
        raise ConfigError("mine")


def test_what_a_stage_has_heard_goes_to_the_next_stage(
    said: dict[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that was well itself tells of its neighbour's error."""
    told: list[Any] = []

    def gathered(group: Any, mine: Any) -> list[Any]:
        told.append((group.name, mine))
        return [mine, *said[group.name]]

    monkeypatch.setattr(ranks, "all_gathered", gathered)
    said["tp"] = ["wrong"]
    with pytest.raises(CanaryError), ranks.together(stages=True):
        pass
    assert told == [("tp", None), ("pp", "rank 5: wrong")]
