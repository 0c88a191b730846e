# SPDX-License-Identifier: Apache-2.0
"""Read examples from folders, JSON lines, parquet files and datasets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vllm_sauce.data.pictures import SUFFIXES, picture_files
from vllm_sauce.data.samples import Picture, PictureFile
from vllm_sauce.data.schema import (
    DatasetSource,
    FolderSource,
    JsonlSource,
    ParquetSource,
)
from vllm_sauce.errors import ActivationsError, ConfigError, PictureError
from vllm_sauce.files import check_unicode, read_lines, writable

Source = FolderSource | JsonlSource | ParquetSource | DatasetSource


@dataclass(frozen=True, slots=True)
class RawExample:
    """What a source holds in one place."""

    key: str
    """Where it is: a picture's path, "table.jsonl#17" (rows count from 0)."""
    picture: Picture | None
    words: str | None
    """A prompt of its own."""
    concepts: tuple[str, ...] = ()
    """Names in the column of concepts, if one was asked for."""
    problem: str = ""
    """Why it cannot be shown, if its text cannot; the rest of the source can."""


@dataclass(frozen=True, slots=True)
class TablePicture:
    """A picture in a table's row; read when it is needed."""

    kind: str
    """ "parquet" or "dataset"."""
    path: Path
    column: str
    row: int
    part: str | int | None = None
    """Row group of the parquet file, or split of the dataset."""

    @property
    def name(self) -> str:
        """Path and row."""
        return f"{self.path}, row {self.row} of {self.part}, column {self.column!r}"

    def read(self) -> bytes:
        """Return the encoded picture.

        Raises: PictureError; ActivationsError if there is none
        """
        try:
            if self.kind == "parquet":
                column = _parquet_column(self.path, self.part, self.column)
                cell = column[self.row].as_py()
            else:
                part = None if self.part is None else str(self.part)
                cell = _dataset(self.path, part, self.column)[self.row][self.column]
            content = _cell_bytes(cell, self.path)
        except FileNotFoundError as error:
            raise ActivationsError(f"cannot read {self.name}: {error}") from error
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise PictureError(f"cannot read {self.name}: {error}") from error
        if content is None:
            raise ActivationsError(f"{self.name} holds no picture, got {cell!r:.80}")
        return content


def read_source(
    source: Source, base: Path, concepts_column: str | None = None
) -> Iterator[RawExample]:
    """Yield a source's examples in a fixed order; pictures are not read yet.

    Paths are relative to ``base``; those in a table, to the table's folder.

    Raises: ConfigError
    """
    if isinstance(source, FolderSource):
        yield from _folder(source, base)
    elif isinstance(source, JsonlSource):
        yield from _jsonl(source, base, concepts_column)
    elif isinstance(source, ParquetSource):
        yield from _parquet(source, base, concepts_column)
    else:
        yield from _from_dataset(source, base, concepts_column)


def _folder(source: FolderSource, base: Path) -> Iterator[RawExample]:
    folder = base / source.folder
    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file, not a folder of pictures; for a table write "
            "{jsonl: FILE, image: COLUMN} or {parquet: FILE, image: COLUMN}"
        )
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}")
    paths = picture_files(folder, inner=True)
    if not paths:
        raise ConfigError(f"no picture in {folder}; looked for {', '.join(SUFFIXES)}")
    for path in paths:
        yield RawExample(_short(path, base), PictureFile(path), None)


def _jsonl(
    source: JsonlSource, base: Path, concepts_column: str | None
) -> Iterator[RawExample]:
    path = base / source.jsonl
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}, line {number + 1}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where} must be an object, got {line[:40]!r}")
        key = f"{writable(source.jsonl)}#{number}"
        used = (source.image, source.prompt, concepts_column)
        picture, problem = None, _problem([row.get(name) for name in used if name])
        if source.image is not None and not problem:
            file = path.parent / _text(row, source.image, where)
            if not file.is_file():
                raise ConfigError(f"{where}: no picture {file}")
            picture = PictureFile(file)
        yield _example(
            key, picture, row, source.prompt, concepts_column, where, problem
        )


def _parquet(
    source: ParquetSource, base: Path, concepts_column: str | None
) -> Iterator[RawExample]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    root = base / source.parquet
    paths = [root]
    if root.is_dir():
        found = sorted(root.glob("*.parquet"))
        paths = [p for p in found if p.is_file() and not p.name.startswith(".")]
    if not paths or not paths[0].is_file():
        raise ConfigError(f"no parquet file at {root}")
    for path in paths:
        try:
            file = ParquetFile(path)
            _check_columns(source, concepts_column, file.schema_arrow.names, path)
            columns = [c for c in (source.prompt, concepts_column) if c is not None]
            number = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                words = file.read_row_group(group, columns)
                for row in range(count):
                    picture = (
                        None
                        if source.image is None
                        else TablePicture("parquet", path, source.image, row, group)
                    )
                    key = f"{_short(path, base)}#{number}"
                    where = f"{path}, row {number}"
                    cells, problem = _cells(partial(_row_of, words, row))
                    yield _example(
                        *(key, picture, cells, source.prompt, concepts_column),
                        *(where, problem),
                    )
                    number += 1
        except (OSError, ArrowException) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error


def _from_dataset(
    source: DatasetSource, base: Path, concepts_column: str | None
) -> Iterator[RawExample]:
    path = base / source.dataset
    rows = _dataset(path, source.split, source.image)
    _check_columns(source, concepts_column, rows.column_names, path)
    columns = [c for c in (source.prompt, concepts_column) if c is not None]
    words = rows.select_columns(columns) if columns else None
    for number in range(len(rows)):
        picture = (
            None
            if source.image is None
            else TablePicture("dataset", path, source.image, number, source.split)
        )
        read = dict[str, Any] if words is None else partial(words.__getitem__, number)
        cells, problem = _cells(read)
        key, where = f"{writable(source.dataset)}#{number}", f"{path}, row {number}"
        yield _example(
            key, picture, cells, source.prompt, concepts_column, where, problem
        )


def _example(
    key: str,
    picture: Picture | None,
    row: dict[str, Any],
    prompt: str | None,
    concepts_column: str | None,
    where: str,
    problem: str,
) -> RawExample:
    if problem:
        return RawExample(key, None, None, problem=problem)
    words = None if prompt is None else _text(row, prompt, where)
    names = () if concepts_column is None else _names(row, concepts_column, where)
    return RawExample(key, picture, words, names)


def _row_of(table: Any, row: int) -> dict[str, Any]:
    cells: dict[str, Any] = table.slice(row, 1).to_pylist()[0] if table.columns else {}
    return cells


def _cells(read: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Return a row of a table, or what is wrong with its text."""
    try:
        row = read()
    except UnicodeDecodeError as error:
        return {}, f"its text is not UTF-8: {error}"
    return row, _problem(list(row.values()))


def _problem(cells: list[Any]) -> str:
    try:
        check_unicode(cells)
    except UnicodeError as error:
        return str(error)
    return ""


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise ConfigError(f"{where} has no column {column!r}; has {', '.join(row)}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {column!r} must be text, got {value!r:.80}")
    return value


def _names(row: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    if column not in row:
        raise ConfigError(f"{where} has no column {column!r}; has {', '.join(row)}")
    value = [row[column]] if isinstance(row[column], str) else row[column]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f"{where}: {column!r} must be a list of concepts' names, got {value!r:.80}"
        )
    return tuple(value)


def _check_columns(
    source: ParquetSource | DatasetSource,
    concepts_column: str | None,
    there: list[str],
    path: Path,
) -> None:
    for column in (source.image, source.prompt, concepts_column):
        if column is not None and column not in there:
            raise ConfigError(
                f"{path} has no column {column!r}; has {', '.join(there)}"
            )


# One row group's pictures are in memory at a time.
@lru_cache(maxsize=1)
def _parquet_column(path: Path, group: object, column: str) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path).read_row_group(group, [column])[column]


@lru_cache(maxsize=8)
def _dataset(path: Path, split: str | None, image: str | None) -> Any:
    """Open a dataset that stays on disk; its pictures stay encoded."""
    import datasets

    try:
        opened = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no dataset written by save_to_disk: {error}"
        ) from error
    if isinstance(opened, datasets.DatasetDict):
        if split not in opened:
            raise ConfigError(
                f"{path} holds the splits {', '.join(opened)}; name one as split, "
                f"got {split!r}"
            )
        opened = opened[split]
    elif split is not None:
        raise ConfigError(f"{path} has no splits; leave out split: {split}")
    if image is not None and isinstance(opened.features.get(image), datasets.Image):
        opened = opened.cast_column(image, datasets.Image(decode=False))
    return opened


def _cell_bytes(cell: object, table: Path) -> bytes | None:
    """Return a picture's bytes from a cell: bytes, {bytes, path}, or a path."""
    if isinstance(cell, dict):
        inner = cell.get("bytes")
        cell = cell.get("path") if inner is None else inner
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        return None
    # A dataset is a folder of its own; its pictures' paths start where it lies.
    return (table.parent / cell).read_bytes()


def _short(path: Path, base: Path) -> str:
    """Return a path as the file would name it."""
    short = path.relative_to(base).as_posix() if path.is_relative_to(base) else path
    return writable(str(short))
