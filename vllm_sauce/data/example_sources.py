# SPDX-License-Identifier: Apache-2.0
"""Read examples from folders, text files, JSON lines, parquet and datasets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vllm_sauce.data.pictures import SUFFIXES, picture_files
from vllm_sauce.data.samples import Picture, PictureFile
from vllm_sauce.data.schema import Source
from vllm_sauce.errors import ActivationsError, ConfigError, PictureError
from vllm_sauce.files import check_unicode, read_lines, writable


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
    group: str | None = None
    """Rows with the same word here are in one split."""
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
                cells = _parquet_column(self.path, self.part, self.column)
                cell = cells[self.row].as_py()
            else:
                rows = _dataset(self.path, self.part, self.column)
                cell = rows[self.row][self.column]
            content = _cell_bytes(cell, self.path)
        except FileNotFoundError as error:
            raise ActivationsError(f"cannot read {self.name}: {error}") from error
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise PictureError(f"cannot read {self.name}: {error}") from error
        if content is None:
            raise ActivationsError(f"{self.name} holds no picture, got {cell!r:.80}")
        return content


def read_source(source: Source, base: Path) -> Iterator[RawExample]:
    """Yield a source's examples in a fixed order; pictures are not read yet.

    Paths are relative to ``base``; those in a table, to the table's folder.

    Raises: ConfigError
    """
    path = base / source.path
    if source.folder is not None:
        yield from _folder(path, base)
    elif source.text is not None:
        for number, line in _lines(path):
            yield RawExample(f"{writable(source.path)}#{number}", None, line.strip())
    elif source.jsonl is not None:
        yield from _jsonl(source, path)
    elif source.parquet is not None:
        for file in _parquet_files(path):
            yield from _parquet(source, file, base)
    else:
        yield from _from_dataset(source, path)


def _folder(folder: Path, base: Path) -> Iterator[RawExample]:
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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold something, numbered from 0."""
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return ((n, line) for n, line in enumerate(lines) if line.strip())


def _jsonl(source: Source, path: Path) -> Iterator[RawExample]:
    for number, line in _lines(path):
        where = f"{path}, line {number + 1}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where} must be an object, got {line[:40]!r}")
        key = f"{writable(source.path)}#{number}"
        yield _example(source, path, key, where, partial(dict, row))


def _parquet_files(root: Path) -> list[Path]:
    paths = [root]
    if root.is_dir():
        found = sorted(root.glob("*.parquet"))
        paths = [p for p in found if p.is_file() and not p.name.startswith(".")]
    if not paths or not paths[0].is_file():
        raise ConfigError(f"no parquet file at {root}")
    return paths


def _parquet(source: Source, path: Path, base: Path) -> Iterator[RawExample]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        _check_columns(source, file.schema_arrow.names, path)
        number = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            words = file.read_row_group(group, _word_columns(source))
            for row in range(count):
                key, where = f"{_short(path, base)}#{number}", f"{path}, row {number}"
                read = partial(_row_of, words, row)
                yield _example(source, path, key, where, read, row, group)
                number += 1
    except (OSError, ArrowException) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _from_dataset(source: Source, path: Path) -> Iterator[RawExample]:
    rows = _dataset(path, source.split, source.image)
    _check_columns(source, rows.column_names, path)
    columns = _word_columns(source)
    words = rows.select_columns(columns) if columns else None
    for number in range(len(rows)):
        read = dict[str, Any] if words is None else partial(words.__getitem__, number)
        key, where = f"{writable(source.path)}#{number}", f"{path}, row {number}"
        yield _example(source, path, key, where, read, number, source.split)


def _word_columns(source: Source) -> list[str]:
    return [column for column in source.columns if column != source.image]


def _example(
    source: Source,
    path: Path,
    key: str,
    where: str,
    read: Callable[[], dict[str, Any]],
    row: int = 0,
    part: str | int | None = None,
) -> RawExample:
    """Return an example whose words ``read`` gives, or what is wrong with them.

    Its picture is in the table, at a row of a part, or a file that JSON lines name.
    """
    try:
        cells = read()
        check_unicode([cells.get(name) for name in source.columns])
    except UnicodeDecodeError as error:
        return RawExample(key, None, None, problem=f"its text is not UTF-8: {error}")
    except UnicodeError as error:
        return RawExample(key, None, None, problem=str(error))
    if source.jsonl is not None:
        # Each line has columns of its own.
        _check_columns(source, cells, where)
    picture: Picture | None = None
    if source.image is not None and source.jsonl is None:
        picture = TablePicture(source.kind, path, source.image, row, part)
    elif source.image is not None:
        file = path.parent / _text(cells, source.image, where)
        if not file.is_file():
            raise ConfigError(f"{where}: no picture {file}")
        picture = PictureFile(file)
    words = None if source.prompt is None else _text(cells, source.prompt, where)
    names = () if source.concepts is None else _names(cells, source.concepts, where)
    group = None if source.group is None else _text(cells, source.group, where)
    return RawExample(key, picture, words, names, group)


def _row_of(table: Any, row: int) -> dict[str, Any]:
    cells: dict[str, Any] = table.slice(row, 1).to_pylist()[0] if table.columns else {}
    return cells


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {column!r} must be text, got {value!r:.80}")
    return value


def _names(row: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    value = row[column]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{where}: {column!r} must be a list of concepts' names, got {names!r:.80}"
        )
    return tuple(names)


def _check_columns(source: Source, there: Iterable[str], where: object) -> None:
    for column in source.columns:
        if column not in there:
            raise ConfigError(
                f"{where} has no column {column!r}; has {', '.join(there)}"
            )


# One row group's pictures are in memory at a time.
@lru_cache(maxsize=1)
def _parquet_column(path: Path, group: object, column: str) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path).read_row_group(group, [column])[column]


@lru_cache(maxsize=8)
def _dataset(path: Path, split: object, image: str | None) -> Any:
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
