# SPDX-License-Identifier: Apache-2.0
"""The order of rows: each once an epoch, mixed, repeatable, in bounded memory."""

import threading
import weakref
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.activations.harvests import SITE, numbered_store, write_harvest
from vllm_sauce.activations import reader as batches
from vllm_sauce.activations.reader import ActivationReader
from vllm_sauce.activations.row_choice import RowChoice, held_out_samples, parse_roles
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.errors import ActivationsError, ConfigError


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 16 rows in blocks of 4, so that small stores have many."""
    monkeypatch.setattr(batches, "BLOCKS_PER_WINDOW", 4)
    return 2 * 16 * 4 / 2**20  # MiB: two windows of 16 rows of one float32


def numbers(batch):
    return batch[:, 0].int().tolist()


def stream(reader, count, start=0):
    return [n for batch in islice(reader.batches(start), count) for n in numbers(batch)]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    num_rows=st.integers(7, 90),
    shard_samples=st.integers(1, 5),
    batch_tokens=st.integers(1, 7),
    seed=st.integers(0, 3),
    start=st.integers(0, 40),
)
def test_each_row_once_an_epoch_and_any_batch_can_be_reached(
    num_rows, shard_samples, batch_tokens, seed, start, small_windows, tmp_path_factory
):
    store = numbered_store(
        tmp_path_factory.mktemp("store"),
        num_rows,
        sample_rows=3,
        shard_samples=shard_samples,
    )
    reader = ActivationReader(store, batch_tokens, seed=seed, buffer_mib=small_windows)
    assert len(reader) == num_rows
    count = -(-3 * num_rows // batch_tokens)
    rows = stream(reader, count)
    epochs = [rows[e * num_rows : (e + 1) * num_rows] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_rows))
    # 7! orders at least: two that are the same were not drawn anew.
    assert epochs[0] != epochs[1] != epochs[2]
    again = ActivationReader(store, batch_tokens, seed=seed, buffer_mib=small_windows)
    start = min(start, count - 1)
    assert stream(again, count - start, start) == rows[start * batch_tokens :]


def test_another_seed_is_another_order(tmp_path):
    store = numbered_store(tmp_path, 200)
    orders = [stream(ActivationReader(store, 20, seed=s), 10) for s in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_batches_mix_all_shards(tmp_path, monkeypatch):
    """Windows of 128 rows in 32 blocks; a shard is an eighth of the rows."""
    monkeypatch.setattr(batches, "BLOCKS_PER_WINDOW", 32)
    store = numbered_store(tmp_path, 1600, shard_samples=20)
    assert len(store.shards) == 8
    reader = ActivationReader(store, 16, seed=1, buffer_mib=2 * 128 * 4 / 2**20)
    shards = [batch[:, 0].int() // 200 for batch in islice(reader.batches(), 96)]
    for shard in shards:
        assert shard.bincount(minlength=8).max() <= 8
    # A window is 8 batches; each has its share of every shard, give or take 2 blocks.
    for window in torch.cat(shards).split(128):
        counts = window.bincount(minlength=8)
        assert counts.min() >= 16 - 8
        assert counts.max() <= 16 + 8
    rows = torch.cat(list(islice(reader.batches(), 100)))[:, 0]
    assert (rows[1:] - rows[:-1]).eq(1).float().mean() < 0.05


def test_memory_is_two_windows(tmp_path, small_windows, monkeypatch):
    """What is alive while a window is read, itself included."""
    store = numbered_store(tmp_path, 600)
    reader = ActivationReader(store, 5, buffer_mib=small_windows)
    windows, most = [], 0
    load = reader._load

    def watched(seed, blocks):
        nonlocal most
        window = load(seed, blocks)
        # Batches and slices are views of it or copies; the storage is what counts.
        windows.append((weakref.ref(window.untyped_storage()), len(window)))
        most = max(most, sum(n for ref, n in windows if ref() is not None))
        return window

    monkeypatch.setattr(reader, "_load", watched)
    for _ in islice(reader.batches(), 300):
        pass
    assert len(windows) > 60
    block_rows = 4
    assert most <= 2 * (reader.window_rows + block_rows)


def test_the_next_window_is_read_while_the_first_is_used(
    tmp_path, small_windows, monkeypatch
):
    store = numbered_store(tmp_path, 100)
    reader = ActivationReader(store, 4, buffer_mib=small_windows)
    second, load = threading.Event(), reader._load

    def watched(seed, blocks):
        if seed[-1] == 1:
            assert threading.current_thread() is not threading.main_thread()
            second.set()
        return load(seed, blocks)

    monkeypatch.setattr(reader, "_load", watched)
    stream_of_batches = reader.batches()
    next(stream_of_batches)
    assert second.wait(10)
    stream_of_batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("sauce-batches")]


def test_only_chosen_rows(tmp_path):
    store = numbered_store(tmp_path, 300)  # samples of 10 rows, roles 0 1 2 0 1 2 ...
    held_out = torch.tensor([2, 5], dtype=torch.int32)
    choice = RowChoice(parse_roles(["image", "generated"]), 1, held_out)
    rows = stream(ActivationReader(store, 1, choice=choice), 28 * 6)
    assert set(rows) == {
        n for n in range(300) if n % 10 in (2, 3, 5, 6, 8, 9) and n // 10 not in (2, 5)
    }
    other = RowChoice(frozenset(Role), 0, held_out, of_held_out=True)
    reader = ActivationReader(store, 1, choice=other)
    assert numbers(reader.sample(1000)) == [*range(20, 30), *range(50, 60)]


def test_a_sample_is_rows_in_order_without_repetition(tmp_path):
    reader = ActivationReader(numbered_store(tmp_path, 300), 10)
    rows = numbers(reader.sample(40))
    assert len(rows) == 40
    assert rows == sorted(set(rows))
    assert max(rows) > 200


def test_stored_types_become_float32(tmp_path):
    x = torch.randn(40, 3)
    write_harvest(tmp_path, x, dtype="bfloat16")
    batch = next(ActivationReader(ActivationStore.open(tmp_path, SITE), 40).batches())
    assert batch.dtype == torch.float32
    want = x.to(torch.bfloat16).float()
    assert sorted(batch.tolist()) == sorted(want.tolist())


def test_what_cannot_be_trained_on_is_named(tmp_path):
    store = numbered_store(tmp_path / "few", 30)
    with pytest.raises(ConfigError, match="has 30 rows of decoder.1 .* needs 31"):
        ActivationReader(store, 31)
    with pytest.raises(ConfigError, match="must be positive"):
        ActivationReader(store, 0)
    x = torch.zeros(30, 2)
    x[17] = float("nan")
    write_harvest(tmp_path / "nan", x)
    broken = ActivationReader(ActivationStore.open(tmp_path / "nan", SITE), 10)
    with pytest.raises(ActivationsError, match="not finite"):
        next(broken.batches())
    with pytest.raises(ConfigError, match="one of image, text, generated, got 'word'"):
        parse_roles(["word"])


def test_held_out_samples_share_no_picture():
    samples = [{"picture": str(n // 4), "prompt": str(n)} for n in range(400)]
    held_out = held_out_samples(samples, 0.2, seed=0).tolist()
    assert 30 < len(held_out) < 140
    pictures = {n // 4 for n in held_out}
    assert len(held_out) == 4 * len(pictures)
    assert held_out_samples(samples[:200], 0.2, 0).tolist() == [
        n for n in held_out if n < 200
    ]
    assert held_out_samples(samples, 0.2, seed=1).tolist() != held_out
    assert held_out_samples(samples, 0, seed=0).tolist() == []
    with pytest.raises(ConfigError):
        held_out_samples(samples, 1.0, seed=0)
