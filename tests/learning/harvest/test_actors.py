# SPDX-License-Identifier: Apache-2.0
"""Harvests on actors: engines on a local Ray, and one here that does their work."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.batch.processes import KillsOneActor, actors, gone, wait_until
from tests.engines import starts_engine
from tests.places import ROOT
from vllm_sauce.activations.shards import read_index
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ActivationsError
from vllm_sauce.learning.harvest import actors as harvest_actors
from vllm_sauce.learning.harvest.actors import (
    HarvestActor,
    cut,
    harvest_anywhere,
)
from vllm_sauce.learning.harvest.engine import HarvestEngine, harvest
from vllm_sauce.learning.harvest.folder import FAILURES_FILE, NumberedSample
from vllm_sauce.learning.harvest.settings import HarvestRequest, HarvestSettings
from vllm_sauce.scale.cluster import Resources

TINY = ROOT / "examples/tiny"
SITES = ("vision", "decoder.1")
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
}
TWO = Resources(actors=2, cpus_per_actor=0.5, gpus_per_actor=0)
DRIVER = """
import sys
from pathlib import Path
from tests.learning.harvest.test_actors import request, samples_of
from vllm_sauce.scale.cluster import Resources
from vllm_sauce.learning.harvest.actors import harvest_anywhere
one = Resources(cpus_per_actor=1, gpus_per_actor=0)
harvest_anywhere(*request(samples_of(), Path(sys.argv[1])), resources=one)
"""


@pytest.fixture(scope="module", autouse=True)
def ordinary_environment():
    """Engines of actors run as a user's do, whatever other tests of the session set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        patch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def samples_of(broken=None):
    """Return questions: about each picture several, far from each other, and alone."""
    pictures = sorted((TINY / "pictures").glob("*.png"))[:30]
    questions = ("What object is it?", "What colour?", "Is it a dog?")
    found = [
        Sample(key=f"{i}~{n}", prompt=words, picture=PictureFile(file))
        for n, words in enumerate(questions)
        for i, file in enumerate(pictures)
    ]
    found += [Sample(key=f"t{i}", prompt=f"is there a dog {i} ?") for i in range(10)]
    if broken is not None:
        found.insert(40, Sample(key="bad", prompt="?", picture=PictureFile(broken)))
        found.insert(70, Sample(key="huge", prompt="dog " * 400))
    return tuple(found)


def request(samples, out, **options) -> tuple[HarvestRequest, tuple[Sample, ...]]:
    """A shard for every sample: what is done is seen at once."""
    told = HarvestRequest(
        model=str(TINY / "model"),
        sites=SITES,
        out=out,
        engine_args=ENGINE,
        harvest=HarvestSettings(**{"shard_tokens": 1, "in_flight": 4, **options}),
    )
    return told, samples


@pytest.fixture(scope="module")
@starts_engine
def engine():
    return HarvestEngine.open(request((), Path())[0])


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    file = tmp_path_factory.mktemp("broken") / "broken.png"
    file.write_bytes(b"no picture")
    return file


@pytest.fixture(scope="module")
def alone(engine, broken, tmp_path_factory):
    """The same by one engine in this process, in large shards."""
    out = tmp_path_factory.mktemp("alone") / "h"
    given = request(samples_of(broken), out, shard_tokens=65_536, in_flight=64)
    assert harvest(*given, engine=engine).num_samples == 100
    return out


def rows_of(folder, site):
    """Return what the rows are, in one order, and the rows."""
    store = ActivationStore.open(folder, site, verify=True)
    keys = [
        # Any sample may have brought a picture that several have.
        (line["picture"] if site == "vision" else line["key"])
        for line in store.samples()
    ]
    sample, position, role = (x.tolist() for x in store.labels())
    labels = [(keys[s], p, r) for s, p, r in zip(sample, position, role, strict=True)]
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return [labels[i] for i in order], store.rows(torch.tensor(order))


def check_equal(folder, want):
    """Compare the rows of two folders; each sample is in a shard once."""
    numbers, expected = (
        sorted(n for entry in read_index(each) for n in entry.samples)
        for each in (folder, want)
    )
    assert numbers == expected
    for site in SITES:
        labels, x = rows_of(folder, site)
        want_labels, want_x = rows_of(want, site)
        assert labels == want_labels
        torch.testing.assert_close(x, want_x, rtol=1e-4, atol=1e-4)


def failures(folder):
    lines = (folder / FAILURES_FILE).read_text().splitlines()
    return {json.loads(line)["key"]: json.loads(line)["reason"] for line in lines}


def indexes(out):
    return {path: path.read_bytes() for path in out.glob("shards.a*.jsonl")}


def done_of(out):
    return [n for entry in read_index(out) for n in entry.samples]


def patient_actor():
    """Return an actor's class; made here, it is sent to Ray as it is.

    On a busy machine one engine starts so late that the other has done everything.
    """

    class Patient(HarvestActor):
        def __call__(self, row):
            begun = time.monotonic()
            index = f"shards.{self.writer}.jsonl"
            if (self.request.out / index).exists():
                while len(list(self.request.out.glob("shards.a*.jsonl"))) < 2:
                    assert time.monotonic() < begun + 300, "waited in vain"
                    time.sleep(0.05)
                # For who looks at the folder as we do, and kills.
                time.sleep(0.5)
            return super().__call__(row)

    return Patient


@pytest.mark.slow
def test_a_killed_actor_costs_no_sample_and_doubles_none(
    alone, broken, tmp_path, monkeypatch
):
    monkeypatch.setattr(harvest_actors, "HarvestActor", patient_actor())
    out = tmp_path / "h"
    seen = {}

    def both_write():
        if len(found := indexes(out)) == 2:
            seen.update(found)
        return seen

    told = []
    killer = KillsOneActor(both_write)
    report = harvest_anywhere(
        *request(samples_of(broken), out),
        resources=TWO,
        progress=lambda *done: told.append(done),
    )
    assert killer.killed is not None
    assert (report.num_samples, set(report.failed)) == (100, {"bad", "huge"})
    check_equal(out, alone)
    assert failures(out) == failures(alone)
    # What was done when it was killed was not taken again: indexes only grow.
    assert all(path.read_bytes().startswith(seen[path]) for path in seen)
    assert told[0] == (0, 102)
    assert told[-1] == (102, 102)
    assert sum(len(lines.splitlines()) for lines in seen.values()) < 100
    assert set(seen) <= set(indexes(out))


def test_the_driver_is_killed_and_the_harvest_goes_on(engine, tmp_path):
    out = tmp_path / "h"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], cwd=ROOT)
    wait_until(lambda: indexes(out) or driver.poll() is not None)
    started = [p for a in actors(driver.pid) for p in (a, *a.children(recursive=True))]
    assert started
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: gone(started))
    before = done_of(out)
    assert 0 < len(before) < 100
    # One process goes on with what actors began.
    assert harvest(*request(samples_of(), out), engine=engine).num_samples == 100
    assert sorted(done_of(out)) == list(range(100))
    assert done_of(out)[: len(before)] == before
    named = {entry.file for entry in read_index(out)}
    assert {path.name for path in out.glob("*.safetensors")} == named
    assert not list(out.glob("*.new"))


@pytest.fixture
def here(engine, monkeypatch):
    """Let this process's engine do the actors' work, one chunk after the other."""

    @contextmanager
    def unconnected(resources):
        yield resources

    def results_of(actor_class, arguments, rows, resources):
        return (actor_class(*arguments)(row) for row in rows)

    monkeypatch.setattr(harvest_actors, "connected", unconnected)
    monkeypatch.setattr(harvest_actors, "results_of", results_of)
    monkeypatch.setattr(HarvestEngine, "open", lambda request: engine)
    return monkeypatch


def test_a_chunk_done_twice_is_there_once(here, alone, broken, tmp_path):
    """As after a machine is lost with the results of what it had finished."""

    def twice(actor_class, arguments, rows, resources):
        return (actor_class(*arguments)(row) for row in [*rows, rows[0]])

    here.setattr(harvest_actors, "results_of", twice)
    out = tmp_path / "h"
    harvest_anywhere(
        *request(samples_of(broken), out, shard_tokens=2000), resources=TWO
    )
    check_equal(out, alone)
    assert failures(out) == failures(alone)


def test_a_full_disk_stops_it_and_it_goes_on(here, alone, broken, tmp_path):
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    given = request(samples_of(broken), tmp_path / "h", shard_tokens=600)
    with here.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ActivationsError, match="No space left on device"):
            harvest_anywhere(*given, resources=TWO)
    assert 0 < len(done_of(tmp_path / "h")) < 100
    harvest_anywhere(*given, resources=TWO)
    check_equal(tmp_path / "h", alone)


def test_a_folder_that_actors_do_not_share_is_named(here, tmp_path):
    given = request(samples_of()[:4], tmp_path / "h")

    def elsewhere(actor_class, arguments, rows, resources):
        (tmp_path / "h/samples.jsonl").unlink()
        return (actor_class(*arguments)(row) for row in rows)

    here.setattr(harvest_actors, "results_of", elsewhere)
    with pytest.raises(ActivationsError, match="under the same path"):
        harvest_anywhere(*given, resources=TWO)
    # Or each machine has a folder of that name.
    here.setattr(
        harvest_actors,
        "results_of",
        lambda *_: iter([{"count": 4, "failed": "{}", "error": ""}]),
    )
    with pytest.raises(ActivationsError, match=r"0 of 4 samples: does every machine"):
        harvest_anywhere(*given, resources=TWO)


def test_without_actors_it_is_done_here(here, alone, broken, tmp_path):
    def connected(resources):
        raise AssertionError("Ray was started")

    here.setattr(harvest_actors, "connected", connected)
    out = tmp_path / "h"
    harvest_anywhere(
        *request(samples_of(broken), out, shard_tokens=2000), resources=None
    )
    assert [path.name for path in out.glob("shards.*")] == ["shards.w0.jsonl"]
    check_equal(out, alone)


def test_pictures_are_found_from_any_folder():
    sample = Sample(key="a", prompt="?", picture=PictureFile(Path("a.png")))
    ((found,),) = cut([NumberedSample(0, sample, "p")], actors=1)
    assert isinstance(found.sample.picture, PictureFile)
    assert found.sample.picture.path == Path.cwd() / "a.png"


def numbered(pictures):
    return [
        NumberedSample(n, Sample(key=str(n), prompt="?"), picture)
        for n, picture in enumerate(pictures)
    ]


def test_chunks_hold_each_sample_once_and_pictures_whole():
    pictures = [f"p{n % 7}" if n % 3 else None for n in range(100)]
    chunks = cut(numbered(pictures), actors=2)
    assert sorted(s.number for chunk in chunks for s in chunk) == list(range(100))
    for picture in set(pictures) - {None}:
        assert sum(any(s.picture == picture for s in chunk) for chunk in chunks) == 1
    assert 8 <= len(chunks) <= 2 * 8
    assert [len(chunk) for chunk in cut(numbered([None] * 5), 1, most=2)] == [2, 2, 1]
    assert len(cut(numbered(["p"] * 9), actors=3)) == 1


def test_one_process_imports_no_ray():
    code = (
        "import sys, vllm_sauce.cli.stages, vllm_sauce.learning.harvest.folder, "
        "vllm_sauce.scale.cluster; sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
