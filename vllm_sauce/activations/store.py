# SPDX-License-Identifier: Apache-2.0
"""Read harvested activations of one site, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.activations.shards import (
    HarvestFile,
    ShardEntry,
    check_shards,
    read_harvest,
    read_index,
    sample_lines,
)
from vllm_sauce.errors import ActivationsError

_STORED = {
    "F32": (np.float32, torch.float32),
    # NumPy has no bfloat16; the bits are the same.
    "BF16": (np.int16, torch.bfloat16),
    "F16": (np.float16, torch.float16),
    "I32": (np.int32, torch.int32),
    "U8": (np.uint8, torch.uint8),
}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file's rows of one site; nothing is read until it is used."""

    activations: Tensor
    """[n, d_model], as stored, memory-mapped"""
    sample: Tensor
    """[n] int32"""
    position: Tensor
    """[n] int32"""
    role: Tensor
    """[n] uint8"""


class ActivationStore:
    """All rows of a site in a harvest's folder, numbered through its shards."""

    def __init__(
        self, harvest: HarvestFile, site: str, shards: Sequence[Shard], folder: Path
    ) -> None:
        self.harvest, self.site, self.folder = harvest, site, folder
        self.shards = tuple(shards)
        self.d_model = harvest.sites[site].d_model
        sizes = [len(shard.role) for shard in self.shards]
        self._starts = np.cumsum([0, *sizes])

    @classmethod
    def open(
        cls, folder: str | Path, site: str, *, verify: bool = False
    ) -> ActivationStore:
        """Open one site; ``verify`` also compares every shard with its hash.

        Raises: ActivationsError
        """
        folder = Path(folder)
        harvest = read_harvest(folder)
        if site not in harvest.sites:
            raise ActivationsError(
                f"{folder} holds {', '.join(sorted(harvest.sites))}, not {site!r}"
            )
        entries = read_index(folder)
        if verify:
            check_shards(folder, entries)
        shards = [
            _open_shard(folder, entry, site, harvest.sites[site].d_model)
            for entry in entries
            if entry.tokens.get(site)
        ]
        return cls(harvest, site, shards, folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return sample, position and role of every row.

        Shapes: -> [num_tokens] int32, [num_tokens] int32, [num_tokens] uint8
        """
        if not self.shards:
            empty = torch.zeros(0, dtype=torch.int32)
            return empty, empty, empty.to(torch.uint8)
        return (
            torch.cat([shard.sample for shard in self.shards]),
            torch.cat([shard.position for shard in self.shards]),
            torch.cat([shard.role for shard in self.shards]),
        )

    def rows(self, index: Tensor) -> Tensor:
        """Return activations by row number, in float32.

        Shapes: index [n] -> [n, d_model]
        """
        found = torch.empty(len(index), self.d_model)
        where = np.searchsorted(self._starts, index.numpy(), side="right") - 1
        for number in np.unique(where):
            mine = torch.from_numpy(where == number)
            local = index[mine] - int(self._starts[number])
            found[mine] = self.shards[number].activations[local].float()
        return found

    def samples(self) -> list[dict[str, Any]]:
        """Return what is known of each sample: key, concepts, image, ..."""
        return list(sample_lines(self.folder))


def _open_shard(folder: Path, entry: ShardEntry, site: str, d_model: int) -> Shard:
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        tensors = {
            name: _mapped(path, header[f"{site}:{name}"], 8 + length)
            for name in ("activations", "sample", "position", "role")
        }
    except (OSError, ValueError, KeyError, MemoryError) as error:
        raise ActivationsError(f"{path} is missing or damaged: {error!r}") from error
    shard = Shard(**tensors)
    count = entry.tokens[site]
    lengths = {len(shard.sample), len(shard.position), len(shard.role)}
    if shard.activations.shape != (count, d_model) or lengths != {count}:
        raise ActivationsError(
            f"{path} must hold {count} rows of width {d_model} for {site}, got "
            f"{tuple(shard.activations.shape)}"
        )
    return shard


def _mapped(path: Path, entry: dict[str, Any], data_start: int) -> Tensor:
    """Return a tensor of a safetensors file without reading it."""
    stored, dtype = _STORED[entry["dtype"]]
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not stop - start:
        return torch.zeros(shape, dtype=dtype)
    # Copy on write: torch wants writable memory, the file stays as it is.
    array = np.memmap(path, stored, "c", data_start + start, shape)
    return torch.from_numpy(array).view(dtype)
