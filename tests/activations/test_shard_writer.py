# SPDX-License-Identifier: Apache-2.0
"""Several writers in one folder; tests/activations/test_shards.py has one."""

import errno
import os
import threading

import pytest
import torch

from vllm_sauce.activations.shard_writer import ShardWriter, remove_unfinished
from vllm_sauce.activations.shards import Role, Rows, check_shards, read_index
from vllm_sauce.errors import ActivationsError


def add(writer, sample, picture=None):
    rows = Rows(
        torch.full((3, 4), float(sample)),
        torch.full((3,), sample, dtype=torch.int32),
        torch.arange(3, dtype=torch.int32),
        torch.full((3,), Role.TEXT, dtype=torch.uint8),
        torch.arange(3, dtype=torch.int32),
    )
    writer.add(sample, {"decoder.1": rows}, (picture,) if picture else ())


def samples_in(folder):
    return [number for entry in read_index(folder) for number in entry.samples]


@pytest.mark.parametrize("name", ["w1", "w0"])
def test_what_another_writer_has_added_is_not_added_again(tmp_path, name):
    """A process given up as dead goes on; what it brings late does not count."""
    late, other = ShardWriter.open(tmp_path, "w0"), ShardWriter.open(tmp_path, name)
    add(late, 1, "a")
    add(other, 1, "a")
    add(other, 2, "b")
    other.flush()
    with pytest.raises(ActivationsError, match="another process has harvested"):
        late.flush()
    only_the_picture = ShardWriter.open(tmp_path, "w2")
    add(only_the_picture, 3, "b")
    with pytest.raises(ActivationsError, match="another process has harvested"):
        only_the_picture.flush()
    assert samples_in(tmp_path) == [1, 2]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert not list(tmp_path.glob(".*.new"))


@pytest.mark.parametrize("names", [("w0", "w0"), ("w0", "w1")])
def test_writers_at_the_same_time_take_turns(tmp_path, names):
    """Even of one name: no shard takes another's place."""

    def write(name, first):
        writer = ShardWriter.open(tmp_path, name, shard_tokens=1)
        ready.wait()
        for sample in range(first, first + 20):
            add(writer, sample)

    ready = threading.Barrier(2)
    threads = [
        threading.Thread(target=write, args=(name, 20 * n))
        for n, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(samples_in(tmp_path)) == list(range(40))
    check_shards(tmp_path, read_index(tmp_path))


def test_what_was_cut_off_is_written_over(tmp_path):
    """Also what another writer of that name has left meanwhile."""
    writer = ShardWriter.open(tmp_path, "w0")
    add(writer, 0)
    writer.flush()
    with (tmp_path / "shards.w0.jsonl").open("a") as file:
        file.write('{"file": "w0-0000')
    add(writer, 1)
    writer.flush()
    assert samples_in(tmp_path) == [0, 1]


def test_an_index_that_could_not_be_synced_does_not_count(tmp_path, monkeypatch):
    """The third: after the shard and the folder."""
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    writer = ShardWriter.open(tmp_path, "w0")
    add(writer, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ActivationsError, match="No space left"):
            writer.flush()
    assert samples_in(tmp_path) == []
    writer.flush()  # there is space again
    assert samples_in(tmp_path) == [0]
    check_shards(tmp_path, read_index(tmp_path))


def test_what_dead_writers_left_is_removed(tmp_path):
    writer = ShardWriter.open(tmp_path, "w0")
    add(writer, 0)
    writer.flush()
    for name in ("a1-000000.safetensors", ".a1-3f.new", ".harvest.json.new"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    remove_unfinished(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"w0-000000.safetensors", "shards.w0.jsonl", ".lock", "notes.txt"}


def test_a_temporary_file_that_vanished_adds_nothing(tmp_path, monkeypatch):
    """Another process that began anew took it for a dead one's."""
    writer = ShardWriter.open(tmp_path, "w0")
    add(writer, 0)
    real = os.fsync

    def vanish(descriptor):
        real(descriptor)
        for path in tmp_path.glob(".*.new"):
            path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", vanish)
        with pytest.raises(ActivationsError, match="cannot write a shard"):
            writer.flush()
    assert samples_in(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ActivationsError, match="cannot write to"):
        ShardWriter.open(tmp_path / "nowhere", "w0")
