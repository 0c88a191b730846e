# SPDX-License-Identifier: Apache-2.0
"""A harvest's folder as a run finds it and leaves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.activations.shard_writer import remove_unfinished
from vllm_sauce.activations.shards import (
    HARVEST_FILE,
    SAMPLES_FILE,
    HarvestFile,
    SiteFormat,
    read_harvest,
    read_index,
)
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.files import file_sha256, locked, write_whole

if TYPE_CHECKING:
    from rich.table import Table

FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """What a harvest's folder holds now."""

    num_samples: int
    """Samples on the disk."""
    failed: dict[str, str]
    """Key of each sample that could not be taken, and why."""
    tokens: dict[str, int]
    """Rows by site."""

    def as_table(self, folder: Path, num_repeated: int = 0) -> Table:
        """Return the report for a terminal."""
        from rich.table import Table

        table = Table(show_header=False)
        table.add_row("folder", str(folder))
        table.add_row("samples", str(self.num_samples))
        table.add_row("left out as equal", str(num_repeated))
        table.add_row("failed", str(len(self.failed)))
        for site, count in sorted(self.tokens.items()):
            table.add_row(f"activations at {site}", str(count))
        size = sum(path.stat().st_size for path in folder.iterdir())
        table.add_row("on disk", f"{size / 2**20:.1f} MiB")
        return table


@dataclass(frozen=True, slots=True)
class NumberedSample:
    """A sample, and what the shards call it."""

    number: int
    sample: Sample
    picture: str | None
    """SHA-256 of its picture's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """harvest.json but for the stored types, which an engine knows."""

    folder: Path
    model: str
    fingerprint: ModelFingerprint
    samples_sha256: str
    max_tokens: int

    def differences(self, sites: Sequence[str]) -> list[str]:
        """Return in what the folder's harvest is another one.

        Raises: ActivationsError
        """
        found = read_harvest(self.folder)
        same = {
            "samples": found.samples_sha256 == self.samples_sha256,
            "sites": set(found.sites) == set(sites),
            "max_tokens": found.max_tokens == self.max_tokens,
            "model": found.fingerprint == self.fingerprint,
        }
        return [name for name in same if not same[name]]

    def check_or_write(self, sites: Mapping[str, SiteFormat]) -> None:
        """Write harvest.json once, or check that the stored types fit.

        Raises: ActivationsError
        """
        samples = self.folder / SAMPLES_FILE
        if not samples.exists():
            raise ActivationsError(
                f"there is no {samples} here; each machine must see the folder of a "
                "harvest under the same path"
            )
        path = self.folder / HARVEST_FILE
        with locked(self.folder, ActivationsError):
            found = read_harvest(self.folder) if path.exists() else None
            sha256 = found.samples_sha256 if found else file_sha256(samples)
            if sha256 != self.samples_sha256:
                raise ActivationsError(
                    f"{self.folder} is another harvest's, begun at the same time; "
                    "give another folder"
                )
            if found is not None:
                if found.sites != sites:
                    raise ActivationsError(
                        f"{self.folder} holds rows of another dtype; give dtype as "
                        "before"
                    )
                return
            file = HarvestFile(
                model=self.model,
                fingerprint=self.fingerprint,
                sites=dict(sites),
                samples_sha256=self.samples_sha256,
                max_tokens=self.max_tokens,
            )
            write_whole(path, file.model_dump_json(indent=1).encode(), ActivationsError)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestFolder:
    """What is in a folder, and what a run still has to bring."""

    header: Header
    sites: tuple[str, ...]
    num_samples: int
    """All that the harvest has."""
    left: list[NumberedSample]
    """Samples that are not on the disk."""
    lines: bytes = field(repr=False)
    """What samples.jsonl holds."""

    @classmethod
    def open(
        cls,
        folder: Path,
        samples: Sequence[Sample],
        *,
        model: str,
        sites: Sequence[str],
        max_tokens: int,
    ) -> HarvestFolder:
        """Look at a folder, new or one that a harvest of the same has begun.

        Raises: ActivationsError, ConfigError
        """
        records = _records(samples)
        lines = b"".join(
            json.dumps(record, ensure_ascii=False).encode() + b"\n"
            for record in records
        )
        header = Header(
            folder=folder,
            model=model,
            fingerprint=fingerprint_model(model),
            samples_sha256=hashlib.sha256(lines).hexdigest(),
            max_tokens=max_tokens,
        )
        done = _done(header, sites)
        pictures = [record["picture"] for record in records]
        left = [
            NumberedSample(number, sample, None if picture is None else str(picture))
            for number, (sample, picture) in enumerate(
                zip(samples, pictures, strict=True)
            )
            if number not in done
        ]
        return cls(
            header=header,
            sites=tuple(sites),
            num_samples=len(samples),
            left=left,
            lines=lines,
        )

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.header.folder

    def begin(self) -> None:
        """Write samples.jsonl, before any engine writes the rest.

        Raises: ActivationsError
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, ActivationsError):
            if not (self.folder / HARVEST_FILE).exists():
                write_whole(self.folder / SAMPLES_FILE, self.lines, ActivationsError)

    def finish(self, failed: Mapping[str, str]) -> HarvestReport:
        """Write failures.jsonl; return what is there.

        Raises: ActivationsError
        """
        _write_failures(self.folder, failed)
        tokens = dict.fromkeys(self.sites, 0)
        entries = read_index(self.folder)
        for entry in entries:
            for site, count in entry.tokens.items():
                tokens[site] += count
        num_samples = sum(len(entry.samples) for entry in entries)
        return HarvestReport(num_samples, dict(failed), tokens)


def _done(header: Header, sites: Sequence[str]) -> set[int]:
    """Return the numbers of the samples on the disk; refuse another's folder."""
    folder = header.folder
    if not (folder / HARVEST_FILE).exists():
        # A kill may have left what is written before harvest.json.
        if folder.exists() and any(
            path.name != SAMPLES_FILE and not path.name.startswith(".")
            for path in folder.iterdir()
        ):
            raise ActivationsError(
                f"{folder} holds something else; give a new folder or remove it"
            )
        return set()
    if different := header.differences(sites):
        raise ActivationsError(
            f"{folder} holds a harvest of other {', '.join(different)}; "
            "give another folder"
        )
    remove_unfinished(folder)
    return {number for entry in read_index(folder) for number in entry.samples}


def _records(samples: Sequence[Sample]) -> list[dict[str, object]]:
    keys = [sample.key for sample in samples]
    if not samples:
        raise ConfigError("there is no sample to harvest")
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"two samples have the key {twice!r}")
    return [sample.to_json() for sample in samples]


def _write_failures(folder: Path, failed: Mapping[str, str]) -> None:
    path = folder / FAILURES_FILE
    if not failed:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"key": k, "reason": v}) + "\n" for k, v in failed.items()]
    write_whole(path, "".join(lines).encode(), ActivationsError)
