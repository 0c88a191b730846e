# SPDX-License-Identifier: Apache-2.0
"""Activations on disk: shards of whole samples, and an index that only ever grows.

    harvest.json            what was harvested: model, sites, settings (HarvestFile)
    samples.jsonl           one line a sample, in the order of their numbers
    shards.<writer>.jsonl   one line a finished shard (ShardEntry)
    <writer>-000000.safetensors   per site S: "S:activations" [n, d_model], "S:sample",
                            "S:position" and "S:token" [n] int32, "S:role" [n] uint8

A shard counts once its line is in an index, which is written after its bytes are on the
disk. So a killed harvest leaves whole samples, each in one shard, and at worst a file
that no index names.
"""

from __future__ import annotations

import enum
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

HARVEST_FILE = "harvest.json"
SAMPLES_FILE = "samples.jsonl"
FORMAT = "vllm-sauce-activations"
VERSION = 2
ROW_TENSORS = ("activations", "sample", "position", "role", "token")
"""What a shard holds of each site: the fields of ``Rows``."""


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

    format: str = FORMAT
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
    token: Tensor
    """[n] int32, the token's id; -1 for a patch at the vision site"""


def read_harvest(folder: Path) -> HarvestFile:
    """Read and check harvest.json. Raises: ActivationsError"""
    path = folder / HARVEST_FILE
    try:
        parsed = HarvestFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ActivationsError(f"no activations in {folder}: {error}") from error
    except ValidationError as error:
        raise ActivationsError(f"{path} is not valid: {error}") from error
    if (parsed.format, parsed.version) != (FORMAT, VERSION):
        raise ActivationsError(
            f"{path} must be {FORMAT} version {VERSION}, got "
            f"{parsed.format!r} version {parsed.version}; harvest again"
        )
    return parsed


def read_index(folder: Path) -> list[ShardEntry]:
    """Return the finished shards of all writers.

    A last line without its end is a write that was cut off: its shard does not count.

    Raises: ActivationsError
    """
    return ShardIndex(folder).read_on()


@dataclass(slots=True)
class ShardIndex:
    """The indexes of all writers, read on as they grow."""

    folder: Path
    _read: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Bytes and lines of each that are known."""

    def read_on(self) -> list[ShardEntry]:
        """Return what is new. Raises: ActivationsError"""
        entries = []
        for path in sorted(self.folder.glob("shards.*.jsonl")):
            start, known = self._read.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(start)
                whole, end, _ = file.read().rpartition(b"\n")
            lines = whole.splitlines()
            for number, line in enumerate(lines, known + 1):
                try:
                    entries.append(ShardEntry.model_validate_json(line))
                except ValidationError as error:
                    raise ActivationsError(f"{path}, line {number}: {error}") from error
            self._read[path] = (start + len(whole) + len(end), known + len(lines))
        return entries

    def lines(self, path: Path) -> int:
        """Return how many lines of an index are known."""
        return self._read.get(path, (0, 0))[1]

    def add(self, path: Path, entry: ShardEntry) -> None:
        """Write a line as a whole; what was cut off before it goes.

        Call ``read_on`` before, in the same turn. Raises: OSError
        """
        start, _ = self._read.get(path, (0, 0))
        line = f"{entry.model_dump_json()}\n".encode()
        # Without a buffer, which would be written again when the file is closed.
        with path.open("ab", buffering=0) as file:
            file.truncate(start)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise


def check_shards(folder: Path, entries: list[ShardEntry]) -> None:
    """Compare every shard with the hash its index holds. Raises: ActivationsError"""
    for entry in entries:
        path = folder / entry.file
        if not path.is_file() or file_sha256(path) != entry.sha256:
            raise ActivationsError(
                f"{path} is missing or damaged; harvest into a new folder"
            )


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
