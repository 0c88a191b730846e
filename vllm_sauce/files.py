# SPDX-License-Identifier: Apache-2.0
"""Text read one way: UTF-8 with or without a mark, lines that end at \\n alone."""

from __future__ import annotations

import codecs
from pathlib import Path

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
