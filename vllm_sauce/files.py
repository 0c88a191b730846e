# SPDX-License-Identifier: Apache-2.0
"""Files: text read one way, folders locked, pointers told from what they point to.

Text is UTF-8 with or without a mark; its lines end at \\n alone.
"""

from __future__ import annotations

import codecs
import fcntl
from pathlib import Path
from typing import IO, Any

from vllm_sauce.errors import BundleCorruptError, SauceError

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


def lock_folder(
    file: IO[Any], folder: Path, *, wait: bool, error: type[SauceError]
) -> None:
    """Lock a folder by an open file of it, until the file is closed.

    Raises: the error that is asked for, if another process has the lock and ``wait`` is
    false, or if the file system has no locks
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise error(
            f"another run is writing to {folder}; wait for it, or end it"
        ) from None
    except OSError as reason:
        raise error(
            f"{folder} cannot be locked ({reason.strerror}), which some network file "
            "systems do not offer; write to another one"
        ) from reason


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
