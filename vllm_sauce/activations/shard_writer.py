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

from vllm_sauce.activations.shards import (
    ROW_TENSORS,
    Rows,
    ShardEntry,
    ShardIndex,
    read_index,
)
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import locked, sync


@dataclass(slots=True)
class ShardWriter:
    """Collects whole samples and writes a shard when there are enough tokens."""

    folder: Path
    writer: str
    """Name of this writer, unique among those that write at the same time."""
    shard_tokens: int
    """Tokens of all sites together at which a shard is written."""
    _index: ShardIndex
    pending_tokens: int = 0
    """Tokens held in memory."""
    _pending: dict[str, list[Rows]] = field(default_factory=dict)
    _samples: list[int] = field(default_factory=list)
    _images: list[str] = field(default_factory=list)
    _taken_samples: set[int] = field(default_factory=set)
    """On the disk, of all writers; so are the images."""
    _taken_images: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: Path, writer: str, shard_tokens: int = 65_536) -> ShardWriter:
        """Go on where this writer ended; what a kill left of it is removed.

        Raises: ActivationsError
        """
        if not writer.isidentifier():
            raise ActivationsError(f"a writer's name is a word, got {writer!r}")
        remove_unfinished(folder, writer)
        return cls(folder, writer, shard_tokens, ShardIndex(folder))

    def add(
        self, sample: int, rows: Mapping[str, Rows], images: tuple[str, ...] = ()
    ) -> None:
        """Take one whole sample, and its pictures that no other sample has brought.

        Raises: ActivationsError
        """
        for site, part in rows.items():
            self._pending.setdefault(site, []).append(part)
            self.pending_tokens += len(part.activations)
        self._samples.append(sample)
        self._images.extend(images)
        if self.pending_tokens >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a shard.

        Raises: ActivationsError; what was written before stays, this part is lost
        """
        if not self._samples:
            return
        import torch
        from safetensors.torch import save

        tensors, counts = {}, {}
        for site, parts in sorted(self._pending.items()):
            counts[site] = sum(len(part.activations) for part in parts)
            for name in ROW_TENSORS:
                joined = torch.cat([getattr(part, name) for part in parts])
                tensors[f"{site}:{name}"] = joined.contiguous()
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
        self.pending_tokens = 0

    def _commit(self, fresh: Path, sha256: str, counts: dict[str, int]) -> None:
        """Make a written file a shard that counts. Raises: ActivationsError, OSError"""
        for done in self._index.read_on():
            self._taken_samples.update(done.samples)
            self._taken_images.update(done.images)
        if not (
            self._taken_samples.isdisjoint(self._samples)
            and self._taken_images.isdisjoint(self._images)
        ):
            raise ActivationsError(
                f"another process has harvested the same samples into {self.folder}; "
                "once it has ended, run the same command to go on"
            )
        index = self.folder / f"shards.{self.writer}.jsonl"
        number = self._index.lines(index)
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
        self._index.add(index, entry)


def remove_unfinished(folder: Path, writer: str = "*") -> None:
    """Remove what a killed writer, or any, has left: files that do not count.

    Raises: ActivationsError
    """
    temporary = ".*.new" if writer == "*" else f".{writer}-*.new"
    with locked(folder, ActivationsError):
        named = {entry.file for entry in read_index(folder)}
        for path in folder.glob(f"{writer}-{'[0-9]' * 6}*.safetensors"):
            if path.name not in named:
                path.unlink()
        for path in folder.glob(temporary):
            path.unlink(missing_ok=True)
