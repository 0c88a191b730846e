# SPDX-License-Identifier: Apache-2.0
"""What actors may take; tests/batch/test_run.py runs them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_sauce.errors import ActorDiedError, BatchError, ConfigError
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


def test_a_temporary_folder_with_a_long_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's sockets lie in it, and their names are limited."""
    pytest.importorskip("ray")
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    with (
        pytest.raises(ConfigError, match="AF_UNIX.*set RAY_TMPDIR to a short one"),
        cluster.connected(Resources()),
    ):
        pass


def test_nothing_to_do_starts_no_actor() -> None:
    """Ray is not even running."""
    assert list(cluster.results_of(lambda: dict, (), [], Resources())) == []


def test_work_of_this_process_comes_as_it_is_done() -> None:
    """Two at once: the slow one is overtaken, and a third waits for a place."""
    started: list[int] = []
    release = threading.Event()

    def actor(row: dict[str, Any]) -> dict[str, Any]:
        started.append(row["number"])
        if row["number"] == 0:
            assert release.wait(60)
        return {"number": row["number"]}

    results = cluster.results_here(actor, [{"number": n} for n in range(5)], at_once=2)
    first = [next(results)["number"] for _ in range(4)]
    assert first == [1, 2, 3, 4]
    release.set()
    assert [row["number"] for row in results] == [0]
    assert sorted(started) == [0, 1, 2, 3, 4]
    assert list(cluster.results_here(actor, [])) == []


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        (ActorDiedError("it died: x"), BatchError, "it died: x; .*same command"),
        (ConfigError("no such picture"), ConfigError, "no such picture"),
    ],
)
def test_what_goes_wrong_here_is_told(
    error: Exception, told: type[Exception], words: str
) -> None:
    def actor(row: dict[str, Any]) -> dict[str, Any]:
        if row["number"] == 2:
            raise error
        return row

    results = cluster.results_here(actor, [{"number": n} for n in range(9)])
    assert [next(results)["number"] for _ in range(2)] == [0, 1]
    with pytest.raises(told, match=words):
        next(results)


def test_who_stops_listening_gets_nothing_more_begun() -> None:
    begun: list[int] = []
    go = threading.Semaphore(1)

    def actor(row: dict[str, Any]) -> dict[str, Any]:
        assert go.acquire(timeout=60)
        begun.append(row["number"])
        return row

    results = cluster.results_here(actor, [{"number": n} for n in range(9)])
    assert next(results) == {"number": 0}
    results.close()  # type: ignore[attr-defined]
    for _ in range(9):
        go.release()
    time.sleep(0.5)
    assert len(begun) <= 2  # the first, and one that was under way


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
    rows = [{"seconds": 3.0}]
    with cluster.connected(resources) as placed:
        from ray.data import DataContext

        context = DataContext.get_current()
        monkeypatch.setattr(context, "execution_no_progress_timeout_s", 1)
        assert list(cluster.results_of(slow_actor(), (), rows, placed)) == rows
