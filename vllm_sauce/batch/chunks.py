# SPDX-License-Identifier: Apache-2.0
"""The input in chunks: any process that sees the file can read each by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_sauce.batch.rows import parse_line
from vllm_sauce.errors import ConfigError, InvalidRequestError
from vllm_sauce.files import BOM, file_sha256

_INDEX = re.compile(r"__index_level_\d+__")
"""What pandas calls a table's index that has no name; nobody asked for it."""

SPOOL = "rows.arrow"
"""A parquet input copied so that each chunk is one record batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive rows of the input: the unit of work, of a retry and of a part."""

    first: int
    """Place of the first row in the input, from 0."""

    rows: int
    """How many rows there are; blank lines are none."""

    path: str
    """The file to read: the JSON lines, or the copy of a parquet file."""

    offset: int
    """First byte in JSON lines; number of the record batch in a copy."""

    num_bytes: int
    """Bytes in JSON lines; 0 in a copy."""


Numbered = tuple[int, dict[str, Any] | InvalidRequestError]
"""A row's place and what it holds, unchecked, or what is wrong with its line."""


def is_parquet(path: Path) -> bool:
    """Tell the kind of an input by its name. Raises: ConfigError"""
    if path.suffix in (".jsonl", ".ndjson"):
        return False
    if path.suffix == ".parquet":
        return True
    raise ConfigError(f"the input must be a .jsonl or .parquet file, got {path.name!r}")


def input_sha256(path: Path) -> str:
    """Return the SHA-256 of the input's bytes. Raises: ConfigError"""
    try:
        return file_sha256(path)
    except OSError as error:
        raise ConfigError(f"cannot read the input: {error}") from error


def split_lines(path: Path, rows_per_chunk: int) -> list[Chunk]:
    """Cut JSON lines into chunks; one pass, a chunk at a time in memory."""
    chunks: list[Chunk] = []
    first = offset = 0
    with path.open("rb") as file:
        while lines := list(islice(file, rows_per_chunk)):
            chunk = Chunk(
                first=first,
                rows=sum(not _is_blank(line) for line in lines),
                path=str(path.resolve()),
                offset=offset,
                num_bytes=sum(map(len, lines)),
            )
            if chunk.rows:
                chunks.append(chunk)
            first += len(lines)
            offset += chunk.num_bytes
    return chunks


def split_parquet(
    path: Path, rows_per_chunk: int, spool: Path, columns: set[str]
) -> list[Chunk]:
    """Copy a parquet file into record batches of a chunk each; bounded memory.

    A chunk could not be read by itself otherwise: a row group is decoded whole.

    Raises: ConfigError
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(path)
        plain = _plain_schema(source.schema_arrow)
        _check_columns(plain.names, columns)
        chunks: list[Chunk] = []
        first = 0
        with (
            pa.OSFile(str(spool), "wb") as file,
            pa.ipc.new_file(file, plain) as writer,
        ):
            for table in _regrouped(source, rows_per_chunk, plain):
                (batch,) = table.combine_chunks().to_batches()
                writer.write_batch(batch)
                chunk = Chunk(
                    first=first,
                    rows=batch.num_rows,
                    path=str(spool.resolve()),
                    offset=len(chunks),
                    num_bytes=0,
                )
                chunks.append(chunk)
                first += batch.num_rows
    except pa.ArrowException as error:
        raise ConfigError(
            f"{path} is no whole parquet file that can be read: {error}"
        ) from error
    return chunks


def read_chunk(chunk: Chunk) -> Iterator[Numbered]:
    """Yield a chunk's rows in order, wrong lines among them."""
    if chunk.num_bytes == 0:
        yield from _read_batch(chunk)
        return
    with Path(chunk.path).open("rb") as file:
        file.seek(chunk.offset)
        lines = file.read(chunk.num_bytes).split(b"\n")
    for number, line in enumerate(lines, chunk.first):
        if _is_blank(line):
            continue
        try:
            yield number, parse_line(line)
        except InvalidRequestError as error:
            yield number, error


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(BOM).strip()


def _check_columns(found: list[str], columns: set[str]) -> None:
    unknown = sorted(set(found) - columns)
    if unknown:
        raise ConfigError(
            f"the input has columns nobody reads: {', '.join(unknown[:5])}; known: "
            f"{', '.join(sorted(columns))}. Put what is to be carried along into 'meta'"
        )


def _plain_schema(schema: Any) -> Any:
    """Return the columns that count, categories as the values they stand for.

    Each row group has categories of its own, and a copy has room for one set only.
    """
    import pyarrow as pa

    return pa.schema(
        [
            field.with_type(_plain(field.type))
            for field in schema
            if not _INDEX.fullmatch(field.name)
        ]
    )


def _plain(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def _regrouped(source: Any, rows_per_chunk: int, plain: Any) -> Iterator[Any]:
    """Yield tables of exactly so many rows: parquet's batches stop at row groups."""
    import pyarrow as pa

    rest = plain.empty_table()
    for batch in source.iter_batches(batch_size=rows_per_chunk):
        table = pa.Table.from_batches([batch]).select(plain.names).cast(plain)
        rest = pa.concat_tables([rest, table])
        while rest.num_rows >= rows_per_chunk:
            yield rest.slice(0, rows_per_chunk)
            rest = rest.slice(rows_per_chunk)
    if rest.num_rows:
        yield rest


def _read_batch(chunk: Chunk) -> Iterator[Numbered]:
    import pyarrow as pa

    with pa.memory_map(chunk.path) as file:
        batch = pa.ipc.open_file(file).get_batch(chunk.offset)
        for at in range(batch.num_rows):
            number = chunk.first + at
            try:
                row = batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                text = f"the row's text is not UTF-8: {error}"
                yield number, InvalidRequestError(text)
                continue
            data = {k: v if k == "meta" else _without_nulls(v) for k, v in row.items()}
            yield number, {k: v for k, v in data.items() if v is not None}


def _without_nulls(value: Any) -> Any:
    # Arrow fills every struct: what a row does not have is null there.
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
