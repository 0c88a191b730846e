# SPDX-License-Identifier: Apache-2.0
"""Files: there whole or not at all, locked, hashed; text read one way.

Text is UTF-8 with or without a mark; its lines end at \\n alone.
"""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.errors import BundleCorruptError, SauceError

if TYPE_CHECKING:
    from pydantic import ValidationError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

BOM = codecs.BOM_UTF8


def read_lines(path: Path) -> list[str]:
    """Return a file's lines without their ends, which are \\n or \\r\\n.

    ``str.splitlines`` cuts at U+2028, U+0085 and others, which JSON and prose may hold.

    Raises: OSError, UnicodeDecodeError
    """
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_object(path: Path, error: type[SauceError]) -> dict[str, object]:
    """Return the JSON object that a file holds.

    Raises: OSError, or the error that is asked for if it holds another thing
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {reason}") from reason
    if not isinstance(found, dict):
        raise error(f"{path} must hold a JSON object")
    return found


def differences(file: Path, run: Mapping[str, object]) -> list[str] | None:
    """Return what differs from the run that a file is of; None if there is no file.

    What was written as JSON is compared with what would be.
    """
    try:
        before = read_object(file, SauceError)
    except FileNotFoundError:
        return None
    except SauceError:
        return [f"a damaged {file.name}"]
    now = json.loads(json.dumps(run))
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def check_unicode(value: object) -> None:
    """Refuse half a character anywhere in a JSON value: no file and no model takes it.

    JSON and YAML can hold one, an unpaired surrogate such as \\ud83d; Python then does.

    Raises: UnicodeError
    """
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            if not is_unicode(found):
                raise UnicodeError(
                    "text must be whole characters, got half of one (an unpaired "
                    f"surrogate) in {ascii(found):.80}; write it anew from its source"
                )
        elif isinstance(found, dict):
            left += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple):
            left += found


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def writable(text: str) -> str:
    """Return a text with half characters spelled out, as \\ud83d."""
    return text.encode(errors="backslashreplace").decode()


def distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object of its pairs: ``json.loads``' ``object_pairs_hook``.

    Of two equal keys a parser keeps the last: a concept or mask would vanish silently.

    Raises: ValueError
    """
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("an object has the same key twice")
    return keys


def problems(error: ValidationError, most: int) -> str:
    """Return the first things that are wrong with data, each with its place."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))[:64] or 'all of it'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)[:most]
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits. Raises: OSError"""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes, error: type[SauceError]) -> None:
    """Write a file that is there as a whole or not at all.

    Raises: the error that is asked for, for example if the disk is full
    """
    try:
        with replaced(path) as fresh:
            fresh.write_bytes(content)
    except OSError as reason:
        raise error(f"cannot write {path}: {reason}") from reason


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a new file that takes this one's place, on the disk, if the block ends well.

    Raises: OSError
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            fresh.unlink()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder that is where nothing is yet, on the disk, if the block ends well.

    Raises: OSError
    """
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            sync(path)
        fresh.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk. Raises: OSError"""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(
    folder: Path, error: type[SauceError], *, wait: bool = True
) -> Iterator[None]:
    """Keep other processes from changing a folder; wait for one that does.

    Raises: the error that is asked for, if another process has the lock and ``wait`` is
    false, if the folder cannot be written to, or if the file system has no locks
    """
    try:
        file = (folder / ".lock").open("wb")
    except OSError as reason:
        raise error(f"cannot write to {folder}: {reason}") from reason
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise error(
                f"another run is writing to {folder}; wait for it, or end it"
            ) from None
        except OSError as reason:
            raise error(
                f"{folder} cannot be locked ({reason.strerror}), which some network "
                "file systems do not offer; write to another one"
            ) from reason
        yield


def refuse_pointer(path: Path, error: type[SauceError] = BundleCorruptError) -> None:
    """Refuse a file that only says where git-lfs has the content.

    Raises: BundleCorruptError, or the error that is asked for
    """
    with path.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if pointer:
        raise error(
            f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in "
            "the clone it lies in"
        )
