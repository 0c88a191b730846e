# SPDX-License-Identifier: Apache-2.0
"""Read harvested activations of one site, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vllm_sauce.activations.shards import (
    ROW_TENSORS,
    HarvestFile,
    Rows,
    ShardEntry,
    check_shards,
    read_harvest,
    read_index,
    sample_lines,
)
from vllm_sauce.errors import ActivationsError


class ActivationStore:
    """All rows of a site in a harvest's folder, numbered through its shards."""

    def __init__(
        self, harvest: HarvestFile, site: str, shards: Sequence[Rows], folder: Path
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
        return self._column("sample"), self._column("position"), self._column("role")

    def tokens(self) -> Tensor:
        """Return the token's id of every row. Shapes: -> [num_tokens] int32"""
        return self._column("token")

    def _column(self, name: str) -> Tensor:
        empty = torch.zeros(0, dtype=torch.uint8 if name == "role" else torch.int32)
        return torch.cat([empty, *(getattr(shard, name) for shard in self.shards)])

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


def _open_shard(folder: Path, entry: ShardEntry, site: str, d_model: int) -> Rows:
    """Map one file's rows of one site into memory; nothing is read until it is used."""
    path = folder / entry.file
    try:
        with safe_open(path, framework="pt") as file:
            rows = Rows(*(file.get_tensor(f"{site}:{name}") for name in ROW_TENSORS))
    except (OSError, SafetensorError) as error:
        raise ActivationsError(f"{path} is missing or damaged: {error!r}") from error
    count = entry.tokens[site]
    lengths = {len(getattr(rows, name)) for name in ROW_TENSORS[1:]}
    if rows.activations.shape != (count, d_model) or lengths != {count}:
        raise ActivationsError(
            f"{path} must hold {count} rows of width {d_model} for {site}, got "
            f"{tuple(rows.activations.shape)}"
        )
    return rows
