# SPDX-License-Identifier: Apache-2.0
"""What actors may take; tests/batch/test_run.py runs them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.scale import cluster
from vllm_sauce.scale.cluster import Resources


def test_more_than_ray_has_is_refused() -> None:
    has = {"CPU": 8.0, "GPU": 2.0}
    asked = Resources(actors=2, cpus_per_actor=4)
    assert cluster.placed(asked, has) == replace(asked, gpus_per_actor=1.0)
    assert cluster.placed(asked, {"CPU": 8.0}) == replace(asked, gpus_per_actor=0.0)
    with pytest.raises(ConfigError, match="3 actors of 1 GPU need 3, Ray has 2"):
        cluster.placed(replace(asked, actors=3, cpus_per_actor=1), has)
    with pytest.raises(ConfigError, match="2 actors of 5 CPU need 10, Ray has 8"):
        cluster.placed(replace(asked, cpus_per_actor=5), has)


def test_nothing_to_do_starts_no_actor() -> None:
    """Ray is not even running."""
    assert list(cluster.results_of(lambda: dict, (), [], Resources())) == []


def slow_actor():
    """Return an actor's class; made here, it is sent to Ray as it is."""

    class Slow:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            time.sleep(row["seconds"])
            return row

    return Slow


def test_long_work_is_not_taken_for_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data gives up on what yields nothing for a while; half an hour by default."""
    resources = Resources(actors=1, cpus_per_actor=1)
    rows = [{"seconds": 6.0}]
    with cluster.connected(resources) as placed:
        from ray.data import DataContext

        context = DataContext.get_current()
        monkeypatch.setattr(context, "execution_no_progress_timeout_s", 1)
        assert list(cluster.results_of(slow_actor(), (), rows, placed)) == rows
