# SPDX-License-Identifier: Apache-2.0
"""Shards written by several processes at once, each sample and picture by one of them.

A process that was given up as dead may live on and finish what another has in the
meantime been given. So writers take turns, and one that brings what any index names
already is refused.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.activations.shards import (
    Rows,
    ShardEntry,
    ShardIndex,
    read_index,
)
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import locked, sync

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class ShardWriter:
    """Collects whole samples and writes a shard when there are enough tokens."""

    folder: Path
    writer: str
    """Name of this writer, unique among those that write at the same time."""
    shard_tokens: int
    """Tokens of all sites together at which a shard is written."""
    _pending: dict[str, list[Rows]] = field(default_factory=dict)
    _samples: list[int] = field(default_factory=list)
    _images: list[str] = field(default_factory=list)
    _num_tokens: int = 0
    _index: ShardIndex = field(init=False)
    _taken: tuple[set[int], set[str]] = field(init=False)
    """Samples and pictures on the disk, of all writers."""

    def __post_init__(self) -> None:
        self._index, self._taken = ShardIndex(self.folder), (set(), set())

    @classmethod
    def open(cls, folder: Path, writer: str, shard_tokens: int = 65_536) -> ShardWriter:
        """Go on where this writer ended; what a kill left of it is removed.

        Raises: ActivationsError
        """
        if not writer.isidentifier():
            raise ActivationsError(f"a writer's name is a word, got {writer!r}")
        opened = cls(folder, writer, shard_tokens)
        with locked(folder, ActivationsError):
            opened._clean()
        return opened

    @property
    def pending_tokens(self) -> int:
        """Tokens held in memory."""
        return self._num_tokens

    def add(
        self, sample: int, rows: Mapping[str, Rows], images: tuple[str, ...] = ()
    ) -> None:
        """Take one whole sample, and its pictures that no other sample has brought.

        Raises: ActivationsError
        """
        for site, part in rows.items():
            self._pending.setdefault(site, []).append(part)
            self._num_tokens += len(part.activations)
        self._samples.append(sample)
        self._images.extend(images)
        if self._num_tokens >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a shard.

        Raises: ActivationsError; what was written before stays, this part is lost
        """
        if not self._samples:
            return
        from safetensors.torch import save

        tensors, counts = {}, {}
        for site, parts in sorted(self._pending.items()):
            counts[site] = sum(len(part.activations) for part in parts)
            for name, tensor in _joined(parts).items():
                tensors[f"{site}:{name}"] = tensor
        content = save(tensors)
        fresh = self.folder / f".{self.writer}-{uuid.uuid4().hex}.new"
        try:
            fresh.write_bytes(content)
            sync(fresh)
            with locked(self.folder, ActivationsError):
                self._commit(fresh, hashlib.sha256(content).hexdigest(), counts)
        except OSError as error:
            raise ActivationsError(
                f"cannot write a shard to {self.folder}: {error}"
            ) from error
        finally:
            fresh.unlink(missing_ok=True)
        self._pending, self._samples, self._images = {}, [], []
        self._num_tokens = 0

    def _commit(self, fresh: Path, sha256: str, counts: dict[str, int]) -> None:
        """Make a written file a shard that counts. Raises: ActivationsError, OSError"""
        self._read_on()
        samples, images = self._taken
        if not samples.isdisjoint(self._samples) or not images.isdisjoint(self._images):
            raise ActivationsError(
                f"another process has harvested the same samples into {self.folder}; "
                "once it has ended, run the same command to go on"
            )
        number = self._index.lines(self._index_file())
        path = self.folder / f"{self.writer}-{number:06d}.safetensors"
        fresh.rename(path)
        sync(self.folder)
        entry = ShardEntry(
            file=path.name,
            sha256=sha256,
            tokens=counts,
            samples=self._samples,
            images=self._images,
        )
        self._index.add(self._index_file(), entry)

    def _read_on(self) -> list[ShardEntry]:
        """Note what all writers have done, and return what is new of it."""
        entries = self._index.read_on()
        for entry in entries:
            self._taken[0].update(entry.samples)
            self._taken[1].update(entry.images)
        return entries

    def _index_file(self) -> Path:
        return self.folder / f"shards.{self.writer}.jsonl"

    def _clean(self) -> None:
        """Remove files of this writer that no index names."""
        named = {entry.file for entry in self._read_on()}
        for path in self.folder.glob(f"{self.writer}-*.safetensors"):
            if path.name not in named:
                path.unlink()
        for path in self.folder.glob(f".{self.writer}-*.new"):
            path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers, all of them, have left: files that do not count.

    Raises: ActivationsError
    """
    with locked(folder, ActivationsError):
        named = {entry.file for entry in read_index(folder)}
        for path in folder.glob(f"*-{'[0-9]' * 6}*.safetensors"):
            if path.name not in named:
                path.unlink()
        for path in folder.glob(".*.new"):
            path.unlink(missing_ok=True)


def _joined(parts: list[Rows]) -> dict[str, Tensor]:
    import torch

    names = ("activations", "sample", "position", "role")
    return {
        name: torch.cat([getattr(part, name) for part in parts]).contiguous()
        for name in names
    }
