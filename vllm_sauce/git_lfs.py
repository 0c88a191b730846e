# SPDX-License-Identifier: Apache-2.0
"""Pointers that ``git clone`` leaves where git-lfs keeps the file itself elsewhere."""

from __future__ import annotations

from pathlib import Path

from vllm_sauce.errors import BundleCorruptError, SauceError

_FIRST_BYTES = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, error: type[SauceError] = BundleCorruptError) -> None:
    """Refuse a file that only says where git-lfs has the content.

    Raises: BundleCorruptError, or the error that is asked for
    """
    with path.open("rb") as file:
        pointer = file.read(len(_FIRST_BYTES)) == _FIRST_BYTES
    if pointer:
        raise error(
            f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in "
            "the clone it lies in"
        )
