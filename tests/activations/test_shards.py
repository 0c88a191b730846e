# SPDX-License-Identifier: Apache-2.0
"""Shards: whole samples, an index that only grows, and what a kill leaves."""

import errno
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.activations.harvests import begin_harvest
from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import (
    HARVEST_FILE,
    Role,
    Rows,
    SiteFormat,
    read_index,
)
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.errors import ActivationsError

SITES = {"vision": SiteFormat(d_model=6, dtype="bfloat16")} | {
    "decoder.1": SiteFormat(d_model=4, dtype="float32")
}


@pytest.fixture
def folder(tmp_path):
    return begin_harvest(tmp_path, [], SITES)


def rows_of(sample, num_tokens, site):
    """Every number says whose it is: sample, token and column."""
    d_model = SITES[site].d_model
    token = torch.arange(num_tokens, dtype=torch.int32)
    values = sample + token[:, None] * 0.25 + torch.arange(d_model) * 0.015625
    return Rows(
        values.to(getattr(torch, SITES[site].dtype)),
        torch.full((num_tokens,), sample, dtype=torch.int32),
        token,
        torch.full((num_tokens,), Role.TEXT, dtype=torch.uint8),
        1000 * sample + token,
    )


def add(writer, sample, num_tokens):
    rows = {site: rows_of(sample, num_tokens, site) for site in SITES}
    writer.add(sample, rows, (f"picture{sample}",))


@pytest.mark.parametrize("site", SITES)
def test_rows_come_back_as_they_were(folder, site):
    writer = ShardWriter.open(folder, "w0", shard_tokens=20)
    for number in range(7):
        add(writer, number, 1 + number)
    writer.flush()
    store = ActivationStore.open(folder, site, verify=True)
    assert len(store.shards) > 1
    assert len(store) == sum(range(1, 8))
    sample, position, role = store.labels()
    assert set(role.tolist()) == {Role.TEXT}
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    want = torch.cat([rows_of(s, 1 + s, site).activations for s in range(7)]).float()
    assert torch.equal(store.rows(order), want[order])
    assert sample.tolist() == [s for s in range(7) for _ in range(1 + s)]
    assert position.tolist() == [t for s in range(7) for t in range(1 + s)]


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_wherever_it_is_killed_no_sample_is_lost_or_doubled(
    data, folder, tmp_path_factory
):
    """Write, stop anywhere without a flush, begin again with what is missing."""
    fresh = tmp_path_factory.mktemp("killed")
    (fresh / HARVEST_FILE).write_bytes((folder / HARVEST_FILE).read_bytes())
    left = list(range(12))
    limit = data.draw(st.integers(1, 60))
    # How far each run gets, whether it flushes, whether its index is torn.
    run = st.tuples(st.integers(1, 12), st.booleans(), st.booleans())
    for stop, flushed, torn in [
        *data.draw(st.lists(run, max_size=8)),
        (12, True, False),
    ]:
        writer = ShardWriter.open(fresh, "w0", shard_tokens=limit)
        for sample in left[:stop]:
            add(writer, sample, 1 + sample % 3)
        if flushed or stop >= len(left):
            writer.flush()
        if torn:  # killed while the index grew
            index = fresh / "shards.w0.jsonl"
            half = '{"file": "w0-0000'
            index.write_text((index.read_text() if index.exists() else "") + half)
        done = {s for entry in read_index(fresh) for s in entry.samples}
        left = [sample for sample in left if sample not in done]
    ShardWriter.open(fresh, "w0")
    seen = [s for entry in read_index(fresh) for s in entry.samples]
    assert sorted(seen) == list(range(12))
    store = ActivationStore.open(fresh, "decoder.1", verify=True)
    assert len(store) == sum(1 + s % 3 for s in range(12))


def test_a_shard_no_index_names_is_removed(folder):
    writer = ShardWriter.open(folder, "w0")
    add(writer, 0, 3)
    writer.flush()
    (folder / "w0-000001.safetensors").write_bytes(b"half a shard")
    (folder / "other-000000.safetensors").write_bytes(b"another writer's")
    writer = ShardWriter.open(folder, "w0")
    assert not (folder / "w0-000001.safetensors").exists()
    assert (folder / "other-000000.safetensors").exists()
    add(writer, 1, 3)
    writer.flush()
    assert [entry.file for entry in read_index(folder)] == [
        "w0-000000.safetensors",
        "w0-000001.safetensors",
    ]


def test_a_full_disk_loses_nothing_that_was_written(folder, monkeypatch):
    writer = ShardWriter.open(folder, "w0")
    add(writer, 0, 3)
    writer.flush()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    add(writer, 1, 3)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ActivationsError, match="No space left"):
            writer.flush()
    assert [entry.samples for entry in read_index(folder)] == [[0]]
    assert len(ActivationStore.open(folder, "vision", verify=True)) == 3
    writer.flush()  # there is space again
    assert [entry.samples for entry in read_index(folder)] == [[0], [1]]


def test_damage_is_named(folder):
    writer = ShardWriter.open(folder, "w0")
    add(writer, 0, 3)
    writer.flush()
    with pytest.raises(ActivationsError, match=r"holds decoder.1, vision, not 'x'"):
        ActivationStore.open(folder, "x")
    path = folder / "w0-000000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    ActivationStore.open(folder, "vision")
    with pytest.raises(ActivationsError, match="missing or damaged"):
        ActivationStore.open(folder, "vision", verify=True)
    path.write_bytes(bytes(content[:40]))
    with pytest.raises(ActivationsError, match="missing or damaged"):
        ActivationStore.open(folder, "vision")
    path.unlink()
    with pytest.raises(ActivationsError, match="missing or damaged"):
        ActivationStore.open(folder, "vision")


def test_a_foreign_index_or_folder_is_named(folder, tmp_path_factory):
    with pytest.raises(ActivationsError, match="no activations in"):
        ActivationStore.open(tmp_path_factory.mktemp("empty"), "vision")
    (folder / "shards.w0.jsonl").write_text('{"file": 3}\n')
    with pytest.raises(ActivationsError, match="line 1"):
        ActivationStore.open(folder, "vision")
    harvest = json.loads((folder / HARVEST_FILE).read_text())
    (folder / HARVEST_FILE).write_text(json.dumps({**harvest, "version": 9}))
    with pytest.raises(ActivationsError, match="version 9"):
        ActivationStore.open(folder, "vision")


def test_a_writer_without_samples_writes_nothing(folder):
    ShardWriter.open(folder, "w0").flush()
    assert not list(folder.glob("*.safetensors"))
    assert len(ActivationStore.open(folder, "vision")) == 0
    with pytest.raises(ActivationsError, match="a writer's name is a word"):
        ShardWriter.open(folder, "../w")
