# SPDX-License-Identifier: Apache-2.0
"""What a run writes: a part a chunk, then one file of answers and one of failures."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vllm_sauce.batch.chunks import SPOOL, Chunk
from vllm_sauce.errors import BatchError, ConfigError
from vllm_sauce.files import differences, locked, replaced

RUN_FILE = "run.json"
_OF_FAILURES = ("error", "message")
_ROW_GROUP = 8192
_OF_A_RUN = (RUN_FILE, "part-*.parquet", SPOOL)
_LEFT_BEHIND = (".part-*", f".{RUN_FILE}.*")
_PART = re.compile(r"part-(\d{12})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row of the result, its fields the columns: an answer, or an error and none."""

    row: int
    id: str | None
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    forget: tuple[tuple[str, float], ...] = ()
    """The mask that was applied: concept and strength."""

    mask_id: str | None = None
    bundle: str | None = None
    """Digest of the bundle the mask is of."""

    meta: str | None = None
    error: str | None = None
    """Class of the error; None for an answer."""

    message: str | None = None


def schema() -> Any:
    """Return the Arrow schema of a part: the output's columns and the errors'."""
    import pyarrow as pa

    mask = pa.list_(pa.struct([("concept", pa.string()), ("strength", pa.float64())]))
    types = {
        "int": pa.int64(),
        "str": pa.string(),
        "tuple[tuple[str, float], ...]": mask,
    }
    return pa.schema(
        [
            (field.name, types[str(field.type).removesuffix(" | None")])
            for field in fields(Answer)
        ]
    )


def encode_part(answers: Sequence[Answer]) -> bytes:
    """Return a part's bytes, its rows in the input's order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = map(asdict, sorted(answers, key=lambda answer: answer.row))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), buffer)
    return buffer.getvalue()


class Parts:
    """The folder of a run's finished parts, beside the output; one run at a time."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.parts")
        self.failures = out.with_name(f"{out.name}.failures.jsonl")

    @contextmanager
    def opened(self, run: Mapping[str, object], *, overwrite: bool) -> Iterator[None]:
        """Hold the folder for a run, new or gone on with.

        Raises: ConfigError if the parts, or the output, are another run's
        """
        existed = (self.folder / RUN_FILE).exists()
        if self.out.exists() and not existed and not overwrite:
            raise ConfigError(f"{self.out} exists; give another name, or --overwrite")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, ConfigError, wait=False):
            self._begin(run, overwrite=overwrite)
            yield

    def _begin(self, run: Mapping[str, object], *, overwrite: bool) -> None:
        file = self.folder / RUN_FILE
        differing = differences(file, run)
        if differing and not overwrite:
            raise ConfigError(
                f"{self.folder} holds parts of another run, which differs in "
                f"{', '.join(differing)}; run as before to go on with it, or give "
                "--overwrite to drop them"
            )
        fresh = differing is None or bool(differing)
        for pattern in _LEFT_BEHIND + (_OF_A_RUN if fresh else ()):
            for path in self.folder.glob(pattern):
                path.unlink()
        if fresh:
            text = json.dumps(run, indent=1, sort_keys=True) + "\n"
            self.write(RUN_FILE, text.encode())

    def finished(self, chunks: Sequence[Chunk]) -> dict[int, Path]:
        """Return whole parts by their chunk's first row; damaged ones are removed."""
        wanted = {chunk.first for chunk in chunks}
        found: dict[int, Path] = {}
        for path in sorted(self.folder.glob("part-*.parquet")):
            match = _PART.fullmatch(path.name)
            first = int(match[1]) if match else -1
            whole = match and _digest(path.read_bytes()) == match[2]
            if whole and first in wanted and first not in found:
                found[first] = path
            else:
                path.unlink()
        return found

    def add(self, first: int, part: bytes) -> Path:
        """Write a part: whole and on the disk, or not there. Raises: BatchError"""
        return self.write(f"part-{first:012d}-{_digest(part)}.parquet", part)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the folder, whole or not at all. Raises: BatchError"""
        path = self.folder / name
        with writing(path), replaced(path) as fresh:
            fresh.write_bytes(content)
        return path

    def merge(self, parts: Mapping[int, Path], chunks: Sequence[Chunk]) -> int:
        """Join the parts into the output and the failures; returns how many failed.

        Raises: BatchError if a row has no part, or has two
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = pa.schema([f for f in schema() if f.name not in _OF_FAILURES])
        failed = 0
        with (
            writing(self.out),
            replaced(self.out) as fresh,
            writing(self.failures),
            replaced(self.failures) as side,
            pq.ParquetWriter(fresh, kept) as writer,
            side.open("w", encoding="utf-8") as lines,
        ):
            for table in _joined(parts, chunks):
                good = table.filter(table["error"].is_null())
                writer.write_table(good.select(kept.names))
                bad = table.filter(table["error"].is_valid())
                for row in bad.select(("row", "id", *_OF_FAILURES)).to_pylist():
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                failed += bad.num_rows
        return failed

    def remove(self) -> None:
        """Remove the parts, once merged."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _joined(parts: Mapping[int, Path], chunks: Sequence[Chunk]) -> Iterator[Any]:
    """Yield the checked parts in order, joined into tables of a row group's size."""
    import pyarrow as pa

    # An empty input has an output, too.
    waiting = [schema().empty_table()]
    for chunk in chunks:
        waiting.append(_checked(parts.get(chunk.first), chunk))
        if sum(table.num_rows for table in waiting) >= _ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _checked(path: Path | None, chunk: Chunk) -> Any:
    import pyarrow.parquet as pq

    if path is None:
        raise BatchError(f"rows from {chunk.first} on have no part; run this again")
    table = pq.read_table(path)
    rows = table["row"].to_pylist()
    # Numbers rise, lie in the chunk's range and are as many as the chunk has rows.
    if len(rows) != chunk.rows or rows != sorted(set(rows)) or rows[0] < chunk.first:
        raise BatchError(
            f"{path} must hold the {chunk.rows} rows from {chunk.first} on, holds "
            f"{len(rows)}; remove it and run this again"
        )
    return table


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what could not be written, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise BatchError(
            f"cannot write {path}: {error.strerror or error}; what is finished is "
            "kept: mend that and run the same command to go on"
        ) from error
