# SPDX-License-Identifier: Apache-2.0
"""Shuffled batches from shards that do not fit into memory.

An epoch is a fresh order of blocks, stretches of neighbouring rows of one shard, in
which every shard is spread evenly. As many blocks as half the buffer holds are one
window: it is read block by block, its rows are shuffled, and batches are cut from it
while a thread reads the next. The order depends on the seed and the settings alone,
and any batch of it can be reached without reading those before.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_sauce.activations.row_choice import RowChoice
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.errors import ActivationsError, ConfigError

BLOCKS_PER_WINDOW = 256
"""Fewer mix badly, more make reads short."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Stretches of rows, by shard and place."""

    shard: Integers
    start: Integers
    stop: Integers
    count: Integers
    """Chosen rows in the stretch; never 0."""


class ActivationReader:
    """Yields a site's chosen rows in shuffled batches, each once an epoch, forever."""

    def __init__(
        self,
        store: ActivationStore,
        batch_tokens: int,
        *,
        seed: int = 0,
        choice: RowChoice | None = None,
        buffer_mib: float = 512,
    ) -> None:
        """Count the chosen rows; no activation is read.

        Raises: ConfigError if they do not fill a batch
        """
        if batch_tokens < 1 or buffer_mib <= 0:
            raise ConfigError(
                "batch_tokens and buffer_mib must be positive, got "
                f"{batch_tokens} and {buffer_mib}"
            )
        self.store, self.batch_tokens, self.seed = store, batch_tokens, seed
        self.choice = choice or RowChoice()
        size = store.shards[0].activations.element_size() if store.shards else 4
        # Two windows are alive: one is cut into batches while the next is read.
        fitting = int(buffer_mib * 2**20 / 2 / (store.d_model * size))
        self.window_rows = max(fitting, BLOCKS_PER_WINDOW)
        self._blocks = self._find_blocks(self.window_rows // BLOCKS_PER_WINDOW)
        self._num_rows = int(self._blocks.count.sum())
        if self._num_rows < batch_tokens:
            raise ConfigError(
                f"{store.folder} has {self._num_rows} rows of {store.site} to choose "
                f"from, a batch needs {batch_tokens}; harvest more or lower the batch"
            )

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return self._num_rows

    def batches(self, start: int = 0) -> Generator[Tensor]:
        """Yield batches forever from batch number ``start`` on.

        Shapes: -> [batch_tokens, d_model] float32
        Raises: ActivationsError if a row holds a number that is not finite
        """
        kept: list[Tensor] = []
        missing = self.batch_tokens
        for window in self._windows(start * self.batch_tokens):
            while len(window):
                kept.append(window[:missing].to(torch.float32, copy=True))
                window = window[len(kept[-1]) :]
                missing -= len(kept[-1])
                if not missing:
                    yield torch.cat(kept) if len(kept) > 1 else kept[0]
                    kept, missing = [], self.batch_tokens
            # Even an empty slice would keep the whole window in memory.
            del window

    def sample(self, count: int) -> Tensor:
        """Return some rows, or all if there are fewer, in the order they are stored.

        Shapes: -> [min(count, len(self)), d_model] float32
        """
        rng = np.random.default_rng([self.seed, 0x5A3C])
        rows = np.sort(
            rng.choice(self._num_rows, min(count, self._num_rows), replace=False)
        )
        ends = np.cumsum(self._blocks.count)
        block_of_row = np.searchsorted(ends, rows, side="right")
        parts = []
        for block in np.unique(block_of_row):
            first = ends[block] - self._blocks.count[block]
            local = torch.from_numpy(rows[block_of_row == block] - first)
            parts.append(self._read(int(block))[local].float())
        return torch.cat(parts)

    def _find_blocks(self, block_rows: int) -> _Blocks:
        found: list[tuple[int, int, int, int]] = []
        for number, shard in enumerate(self.store.shards):
            mask = self.choice.mask(shard, 0, len(shard.role))
            for start in range(0, len(mask), block_rows):
                stop = min(start + block_rows, len(mask))
                if count := int(mask[start:stop].sum()):
                    found.append((number, start, stop, count))
        columns = np.array(found, np.int64).reshape(-1, 4).T
        return _Blocks(*columns)

    def _windows(self, first_row: int) -> Iterator[Tensor]:
        """Yield the shuffled windows of all epochs, from a row of the stream on."""
        todo = self._window_numbers(first_row // self._num_rows)
        offset = first_row % self._num_rows
        reader = ThreadPoolExecutor(1, thread_name_prefix="sauce-batches")
        try:
            upcoming: tuple[Future[Tensor], int] | None = None
            for seed, blocks in todo:
                rows = int(self._blocks.count[blocks].sum())
                if offset >= rows:
                    offset -= rows
                    continue
                following = reader.submit(self._load, seed, blocks), offset
                if upcoming is not None:
                    yield upcoming[0].result()[upcoming[1] :]
                upcoming, offset = following, 0
        finally:
            reader.shutdown(cancel_futures=True)

    def _window_numbers(self, first: int) -> Iterator[tuple[list[int], Integers]]:
        """Yield the seed and the blocks of each window from an epoch on."""
        for epoch in itertools.count(first):
            order = self._order(np.random.default_rng([self.seed, epoch]))
            before = np.cumsum(self._blocks.count[order]) - self._blocks.count[order]
            window = before // self.window_rows
            for number, blocks in enumerate(_runs(window)):
                yield [self.seed, epoch, number], order[blocks]

    def _order(self, rng: np.random.Generator) -> Integers:
        """Return the blocks in random order, those of each shard evenly spread."""
        place = np.empty(len(self._blocks.shard))
        for mine in _runs(self._blocks.shard):
            ranks = rng.permutation(len(mine))
            place[mine] = (ranks + rng.random(len(ranks))) / len(ranks)
        return np.argsort(place, kind="stable")

    def _load(self, seed: list[int], blocks: Integers) -> Tensor:
        """Read a window: blocks as they lie on disk, rows where the shuffle wants."""
        blocks = np.sort(blocks)
        num_rows = int(self._blocks.count[blocks].sum())
        place = torch.from_numpy(np.random.default_rng(seed).permutation(num_rows))
        window = torch.empty(
            num_rows, self.store.d_model, dtype=self.store.shards[0].activations.dtype
        )
        done = 0
        for block in blocks:
            rows = self._read(int(block))
            window[place[done : done + len(rows)]] = rows
            done += len(rows)
        return window

    def _read(self, block: int) -> Tensor:
        shard = self.store.shards[self._blocks.shard[block]]
        start, stop = int(self._blocks.start[block]), int(self._blocks.stop[block])
        rows = shard.activations[start:stop]
        rows = rows[self.choice.mask(shard, start, stop)]
        if not rows.isfinite().all():
            raise ActivationsError(
                f"{self.store.folder} has rows of {self.store.site} that are not "
                "finite; the model overflowed there: harvest in bfloat16 or float32"
            )
        return rows


def _runs(values: Integers) -> list[Integers]:
    """Return the places of each run of equal values."""
    return np.split(np.arange(len(values)), np.flatnonzero(np.diff(values)) + 1)
