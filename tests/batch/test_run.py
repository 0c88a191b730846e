# SPDX-License-Identifier: Apache-2.0
"""Runs here and on a real local Ray; an engine's stand-in answers, for speed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.batch import stand_in
from tests.batch.processes import KillsOneActor, actors, gone, wait_until
from tests.places import ROOT
from vllm_sauce.batch import run
from vllm_sauce.errors import BatchError, BundleMismatchError, ConfigError
from vllm_sauce.scale import cluster
from vllm_sauce.scale.cluster import Resources

TWO = Resources(actors=2, cpus_per_actor=0.5, gpus_per_actor=0)
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.batch import stand_in
from tests.batch.test_run import TWO
from vllm_sauce.batch import run
request = stand_in.request(Path(sys.argv[1]), Path(sys.argv[2]), resources=TWO)
run.run(stand_in.JOB, request, start=stand_in.start_echo)
"""


def write_rows(path: Path, count: int) -> Path:
    """Write rows of which every seventh is wrong and every fifth is refused."""
    with path.open("w") as file:
        for i in range(count):
            row: dict[str, Any] = {"prompt": "refuse" if i % 5 == 4 else f"row {i}"}
            file.write("{\n" if i % 7 == 6 else json.dumps(row) + "\n")
    return path


def check(out: Path, count: int) -> None:
    """Every row is in the output or the failures, once, with its own answer."""
    table = pq.read_table(out).to_pylist()
    bad = [i for i in range(count) if i % 7 == 6 or i % 5 == 4]
    assert [row["row"] for row in table] == [i for i in range(count) if i not in bad]
    assert all(row["text"] == f"echo row {row['row']}" for row in table)
    lines = out.with_name(f"{out.name}.failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == bad
    assert not out.with_name(f"{out.name}.parts").exists()


def parts(out: Path) -> list[Path]:
    """Return the finished parts."""
    return sorted(out.with_name(f"{out.name}.parts").glob("part-*"))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a run that starts Ray."""

    def refuse(resources: Resources) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(run, "connected", refuse)


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """A local Ray: its start is most of what a run on it takes here."""
    with cluster.connected(Resources(gpus_per_actor=0)):
        yield


@pytest.fixture
def ray(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the one that is there."""
    import ray

    @contextmanager
    def connected(resources: Resources) -> Iterator[Resources]:
        yield cluster.placed(resources, ray.cluster_resources())

    monkeypatch.setattr(run, "connected", connected)


def test_one_process_answers_without_ray(tmp_path: Path, no_ray: None) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 61), tmp_path / "out.parquet"
    told: list[tuple[int, int, int]] = []
    done = run.run(
        stand_in.JOB,
        stand_in.request(source, out),
        progress=lambda *counts: told.append(counts),
        start=stand_in.start_echo,
    )
    check(out, 61)
    assert (done.rows, done.failed, done.resumed) == (61, 19, 0)
    assert (told[0], told[-1]) == ((0, 61, 0), (61, 61, 19))


def test_an_engine_that_dies_here_costs_what_it_had(
    tmp_path: Path, no_ray: None
) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 61), tmp_path / "out.parquet"
    # So few at once that one call after the other is made.
    job = replace(stand_in.JOB, engine_args={"max_num_seqs": 1})
    with pytest.raises(BatchError, match="the engine died.* same command to go on"):
        run.run(job, stand_in.request(source, out), start=stand_in.start_mortal)
    assert not out.exists()
    before = len(parts(out))
    assert 3 <= before <= stand_in.Mortal.LIFE
    done = run.run(job, stand_in.request(source, out), start=stand_in.start_echo)
    check(out, 61)
    assert done.resumed == 2 * before


def test_an_engine_that_cannot_start_here_says_why(
    tmp_path: Path, no_ray: None
) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 4), tmp_path / "out.parquet"
    with pytest.raises(BundleMismatchError, match="another bundle"):
        run.run(stand_in.JOB, stand_in.request(source, out), start=stand_in.start_never)
    assert not out.exists()


def test_the_driver_is_killed_and_run_again(tmp_path: Path) -> None:
    """No engine of it keeps running; what was finished is not done again."""
    source, out = write_rows(tmp_path / "in.jsonl", 61), tmp_path / "out.parquet"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(source), str(out)], cwd=ROOT
    )
    wait_until(lambda: len(parts(out)) > 2 or driver.poll() is not None)
    started = [p for a in actors(driver.pid) for p in (a, *a.children(recursive=True))]
    assert started
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {part: part.stat().st_mtime_ns for part in parts(out)}
    assert 2 < len(before) < 31
    wait_until(lambda: gone(started))
    # One actor is enough to go on with what two began.
    one = Resources(cpus_per_actor=1, gpus_per_actor=0)
    seen: dict[Path, int] = {}

    def look(done: int, total: int, failed: int) -> None:
        seen.update({part: part.stat().st_mtime_ns for part in parts(out)})

    done = run.run(
        stand_in.JOB,
        stand_in.request(source, out, resources=one),
        progress=look,
        start=stand_in.start_echo,
    )
    check(out, 61)
    assert before.items() <= seen.items()
    # The last part has a single row.
    assert done.resumed in (2 * len(before), 2 * len(before) - 1)


def test_an_actor_is_killed(tmp_path: Path, ray: None) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 61), tmp_path / "out.parquet"
    told: list[tuple[int, int, int]] = []
    killer = KillsOneActor(lambda: len(parts(out)) > 2)
    done = run.run(
        stand_in.JOB,
        stand_in.request(source, out, resources=TWO),
        progress=lambda *counts: told.append(counts),
        start=stand_in.start_echo,
    )
    assert killer.killed is not None
    check(out, 61)
    assert (done.rows, done.failed, done.resumed) == (61, 19, 0)
    assert (told[0], told[-1]) == ((0, 61, 0), (61, 61, 19))
    assert "19 failed" in done.line()


def test_an_actor_that_cannot_start_says_why(tmp_path: Path, ray: None) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 4), tmp_path / "out.parquet"
    with pytest.raises(BatchError, match="BundleMismatchError: another bundle"):
        run.run(
            stand_in.JOB,
            stand_in.request(source, out, resources=Resources(gpus_per_actor=0)),
            start=stand_in.start_never,
        )
    assert not out.exists()


def test_a_chunk_that_always_kills_its_actor_ends_the_run(
    tmp_path: Path, ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RETRIES", 0)  # Each takes a new process.
    source, out = write_rows(tmp_path / "in.jsonl", 2), tmp_path / "out.parquet"
    with pytest.raises(BatchError, match="an actor failed"):
        run.run(
            stand_in.JOB,
            stand_in.request(source, out, resources=Resources(gpus_per_actor=0)),
            start=stand_in.start_dying,
        )
    assert not out.exists()


@pytest.mark.parametrize(
    ("source", "out", "told"),
    [
        ("in.csv", "out.parquet", r"\.jsonl or \.parquet"),
        ("in.jsonl", "out.csv", r"must be a \.parquet"),
        ("nothing.jsonl", "out.parquet", "cannot read the input"),
        ("in.parquet", "in.parquet", "would replace the input"),
    ],
)
def test_wrong_files_are_refused_at_once(
    tmp_path: Path, source: str, out: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run.run(
            stand_in.JOB,
            stand_in.request(tmp_path / source, tmp_path / out, resources=Resources()),
        )


def test_an_empty_input_has_an_empty_output(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    done = run.run(
        stand_in.JOB,
        stand_in.request(
            tmp_path / "in.jsonl", tmp_path / "out.parquet", resources=Resources()
        ),
    )
    assert (done.rows, done.failed) == (0, 0)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
