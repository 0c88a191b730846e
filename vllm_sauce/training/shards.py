# SPDX-License-Identifier: Apache-2.0
"""Activations on disk: shards of whole samples, and an index that only ever grows.

    harvest.json            what was harvested: model, sites, settings (HarvestFile)
    samples.jsonl           one line a sample, in the order of their numbers
    shards.<writer>.jsonl   one line a finished shard (ShardEntry)
    <writer>-000000.safetensors   per site S: "S:activations" [n, d_model], "S:sample"
                            and "S:position" [n] int32, "S:role" [n] uint8

A shard counts once its line is in an index, which is written after its bytes are on the
disk. So a killed harvest leaves whole samples, each in one shard, and at worst a file
that no index names.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_sauce.bundle.fingerprint import file_sha256
from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.errors import ActivationsError

if TYPE_CHECKING:
    from torch import Tensor

HARVEST_FILE = "harvest.json"
SAMPLES_FILE = "samples.jsonl"
VERSION = 1


class Role(enum.IntEnum):
    """What a token is in its sample."""

    IMAGE = 0
    """A patch: of a picture at the vision site, an image token in a decoder layer."""
    TEXT = 1
    """A token of the prompt."""
    GENERATED = 2
    """A token the model wrote."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SiteFormat(_Strict):
    """What the rows of one site are."""

    d_model: int
    dtype: str
    """ "float32", "bfloat16" or "float16"."""


class HarvestFile(_Strict):
    """harvest.json: equal for every run that adds to a folder."""

    format: str = "vllm-sauce-activations"
    version: int = VERSION
    model: str
    """As it was given; the fingerprint is what is compared."""
    fingerprint: ModelFingerprint
    sites: dict[str, SiteFormat]
    samples_sha256: str
    """Of samples.jsonl: a sample's number means the same in every run."""
    max_tokens: int
    """Tokens generated for each sample."""


class ShardEntry(_Strict):
    """A line of an index: one finished shard."""

    file: str
    sha256: str
    tokens: dict[str, int]
    """Rows by site."""
    samples: list[int]
    """Numbers of the samples that are whole in this shard."""
    images: list[str]
    """Identifiers of the pictures whose patches are in this shard."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one site, with what they are."""

    activations: Tensor
    """[n, d_model]"""
    sample: Tensor
    """[n] int32, the sample's number; of a shared picture, the first that had it"""
    position: Tensor
    """[n] int32, place in the sample's tokens, or the patch's number"""
    role: Tensor
    """[n] uint8"""


def read_harvest(folder: Path) -> HarvestFile:
    """Read and check harvest.json.

    Raises: ActivationsError
    """
    path = folder / HARVEST_FILE
    try:
        parsed = HarvestFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ActivationsError(f"no activations in {folder}: {error}") from error
    except ValidationError as error:
        raise ActivationsError(f"{path} is not valid: {error}") from error
    if (parsed.format, parsed.version) != ("vllm-sauce-activations", VERSION):
        raise ActivationsError(
            f"{path} must be vllm-sauce-activations version {VERSION}, got "
            f"{parsed.format!r} version {parsed.version}"
        )
    return parsed


def read_index(folder: Path) -> list[ShardEntry]:
    """Return the finished shards of all writers.

    A last line without its end is a write that was cut off: its shard does not count.

    Raises: ActivationsError
    """
    entries = []
    for path in sorted(folder.glob("shards.*.jsonl")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entries.append(ShardEntry.model_validate_json(line))
            except ValidationError as error:
                raise ActivationsError(f"{path}, line {number}: {error}") from error
    return entries


def check_shards(folder: Path, entries: list[ShardEntry]) -> None:
    """Compare every shard with the hash its index holds.

    Raises: ActivationsError
    """
    for entry in entries:
        path = folder / entry.file
        if not path.is_file() or file_sha256(path) != entry.sha256:
            raise ActivationsError(
                f"{path} is missing or damaged; harvest into a new folder"
            )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all.

    Raises: ActivationsError, for example if the disk is full
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ActivationsError(f"cannot write {path}: {error}") from error


@dataclass(slots=True)
class ShardWriter:
    """Collects whole samples and writes a shard when there are enough tokens."""

    folder: Path
    writer: str
    """Name of this writer, unique among those that write at the same time."""
    shard_tokens: int = 65_536
    """Tokens of all sites together at which a shard is written."""
    _pending: dict[str, list[Rows]] = field(default_factory=dict)
    _samples: list[int] = field(default_factory=list)
    _images: list[str] = field(default_factory=list)
    _num_tokens: int = 0
    _next: int = 0

    def __post_init__(self) -> None:
        if not self.writer.isidentifier():
            raise ActivationsError(f"a writer's name is a word, got {self.writer!r}")
        self._clean()

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
        entry = self._write_shard()
        line = (json.dumps(entry.model_dump(), separators=(",", ":")) + "\n").encode()
        try:
            with self._index().open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ActivationsError(f"cannot write {self._index()}: {error}") from error
        self._pending, self._samples, self._images = {}, [], []
        self._num_tokens, self._next = 0, self._next + 1

    def _write_shard(self) -> ShardEntry:
        from safetensors.torch import save

        tensors, counts = {}, {}
        for site, parts in sorted(self._pending.items()):
            counts[site] = sum(len(part.activations) for part in parts)
            for name, tensor in _joined(parts).items():
                tensors[f"{site}:{name}"] = tensor
        path = self.folder / f"{self.writer}-{self._next:06d}.safetensors"
        write_whole(path, save(tensors))
        return ShardEntry(
            file=path.name,
            sha256=file_sha256(path),
            tokens=counts,
            samples=self._samples,
            images=self._images,
        )

    def _index(self) -> Path:
        return self.folder / f"shards.{self.writer}.jsonl"

    def _clean(self) -> None:
        """Cut off a torn last line and remove files that no index names."""
        index = self._index()
        if index.exists():
            content = index.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(index, whole)
        named = {entry.file for entry in read_index(self.folder)}
        for path in self.folder.glob(f"{self.writer}-*.safetensors"):
            if path.name not in named:
                path.unlink()
        for path in self.folder.glob(f".{self.writer}-*.new"):
            path.unlink()
        numbers = [
            int(name.removeprefix(f"{self.writer}-").removesuffix(".safetensors"))
            for name in named
            if name.startswith(f"{self.writer}-")
        ]
        self._next = max(numbers, default=-1) + 1


def sample_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what samples.jsonl says of each sample, in the order of their numbers.

    Raises: ActivationsError
    """
    path = folder / SAMPLES_FILE
    try:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, ValueError) as error:
        raise ActivationsError(f"cannot read {path}: {error}") from error


def _joined(parts: list[Rows]) -> dict[str, Tensor]:
    import torch

    names = ("activations", "sample", "position", "role")
    return {
        name: torch.cat([getattr(part, name) for part in parts]).contiguous()
        for name in names
    }


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
