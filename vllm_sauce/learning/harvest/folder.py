# SPDX-License-Identifier: Apache-2.0
"""A harvest's folder as a run finds it and leaves it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

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
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.files import file_sha256, locked, write_whole
from vllm_sauce.learning.harvest.settings import HarvestRequest

FAILURES_FILE = "failures.jsonl"

Take = Callable[[Callable[[int], None]], dict[str, str]]
"""Takes samples and tells how many more are done; returns the failed with reasons."""


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """What a harvest's folder holds now."""

    num_samples: int
    """Samples on the disk."""
    failed: Mapping[str, str]
    """Key of each sample that could not be taken, and why."""
    tokens: Mapping[str, int]
    """Rows by site."""

    def as_table(self, folder: Path, num_repeated: int = 0) -> Table:
        """Return the report for a terminal."""
        size = sum(path.stat().st_size for path in folder.iterdir())
        rows = {
            "folder": folder,
            "samples": self.num_samples,
            "left out as equal": num_repeated,
            "failed": len(self.failed),
            **{f"activations at {s}": n for s, n in sorted(self.tokens.items())},
            "on disk": f"{size / 2**20:.1f} MiB",
        }
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, str(value))
        return table


@dataclass(frozen=True, slots=True)
class NumberedSample:
    """A sample, and what the shards call it."""

    number: int
    sample: Sample
    picture: str | None
    """SHA-256 of its picture's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestFolder:
    """What is in a folder, and what a run still has to bring."""

    request: HarvestRequest
    header: HarvestFile
    """harvest.json but for the stored types, which an engine knows."""
    num_samples: int
    """All that the harvest has."""
    left: list[NumberedSample]
    """Samples that are not on the disk."""
    lines: bytes = field(repr=False)
    """What samples.jsonl holds."""

    @classmethod
    def open(cls, request: HarvestRequest, samples: Sequence[Sample]) -> HarvestFolder:
        """Look at a request's folder, new or one that a harvest of the same has begun.

        Raises: ActivationsError, ConfigError
        """
        if not samples:
            raise ConfigError("there is no sample to harvest")
        ((key, times),) = Counter(sample.key for sample in samples).most_common(1)
        if times > 1:
            raise ConfigError(f"two samples have the key {key!r}")
        records = [sample.to_json() for sample in samples]
        lines = b"".join(
            json.dumps(record, ensure_ascii=False).encode() + b"\n"
            for record in records
        )
        header = HarvestFile(
            model=request.model,
            fingerprint=fingerprint_model(request.model),
            sites={},
            samples_sha256=hashlib.sha256(lines).hexdigest(),
            max_tokens=request.harvest.max_tokens,
        )
        done = _done(request, header)
        pictures = [record["picture"] for record in records]
        left = [
            NumberedSample(number, sample, None if picture is None else str(picture))
            for number, (sample, picture) in enumerate(
                zip(samples, pictures, strict=True)
            )
            if number not in done
        ]
        return cls(
            request=request,
            header=header,
            num_samples=len(samples),
            left=left,
            lines=lines,
        )

    def begin(self) -> None:
        """Write samples.jsonl, before any engine writes the rest.

        Raises: ActivationsError
        """
        folder = self.request.out
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, ActivationsError):
            if not (folder / HARVEST_FILE).exists():
                write_whole(folder / SAMPLES_FILE, self.lines, ActivationsError)

    def fill(self, take: Take, progress: Progress) -> HarvestReport:
        """Have what is left taken, write failures.jsonl, and return what is there.

        Raises: ActivationsError, and what ``take`` raises
        """
        done = self.num_samples - len(self.left)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, self.num_samples)

        advance(0)
        failed = take(advance) if self.left else {}
        path = self.request.out / FAILURES_FILE
        lines = [json.dumps({"key": k, "reason": v}) + "\n" for k, v in failed.items()]
        if failed:
            write_whole(path, "".join(lines).encode(), ActivationsError)
        else:
            path.unlink(missing_ok=True)
        tokens = Counter(dict.fromkeys(self.request.sites, 0))
        entries = read_index(self.request.out)
        if failed and len(failed) == self.num_samples:
            key, reason = next(iter(failed.items()))
            raise ActivationsError(
                f"no sample could be taken, all {len(failed)} failed; {key}: {reason}"
            )
        for entry in entries:
            tokens.update(entry.tokens)
        num_samples = sum(len(entry.samples) for entry in entries)
        return HarvestReport(num_samples, failed, tokens)


def check_or_write(
    folder: Path, header: HarvestFile, sites: Mapping[str, SiteFormat]
) -> None:
    """Write harvest.json once, or check that the stored types fit.

    Raises: ActivationsError
    """
    samples = folder / SAMPLES_FILE
    if not samples.exists():
        raise ActivationsError(
            f"there is no {samples} here; each machine must see the folder of a "
            "harvest under the same path"
        )
    path = folder / HARVEST_FILE
    with locked(folder, ActivationsError):
        found = read_harvest(folder) if path.exists() else None
        sha256 = found.samples_sha256 if found else file_sha256(samples)
        if sha256 != header.samples_sha256:
            raise ActivationsError(
                f"{folder} is another harvest's, begun at the same time; "
                "give another folder"
            )
        if found is None:
            file = header.model_copy(update={"sites": dict(sites)})
            write_whole(path, file.model_dump_json(indent=1).encode(), ActivationsError)
        elif found.sites != sites:
            raise ActivationsError(
                f"{folder} holds rows of another dtype; give dtype as before"
            )


def _done(request: HarvestRequest, header: HarvestFile) -> set[int]:
    """Return the numbers of the samples on the disk; refuse another's folder."""
    folder = request.out
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
    found = read_harvest(folder)
    same = {
        "samples": found.samples_sha256 == header.samples_sha256,
        "sites": set(found.sites) == set(request.sites),
        "max_tokens": found.max_tokens == header.max_tokens,
        "model": not found.fingerprint.differences(header.fingerprint),
    }
    if different := [name for name in same if not same[name]]:
        raise ActivationsError(
            f"{folder} holds a harvest of other {', '.join(different)}; "
            "give another folder"
        )
    remove_unfinished(folder)
    return {number for entry in read_index(folder) for number in entry.samples}
