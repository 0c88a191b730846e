# SPDX-License-Identifier: Apache-2.0
"""Held-out samples of a harvest with their pictures, which the harvest names only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import file_sha256


def measurable_samples(
    samples: Sequence[dict[str, Any]],
    held_out: Tensor,
    folders: Sequence[Path],
    limit: int,
) -> list[Sample]:
    """Return up to ``limit`` held-out samples whose pictures can be found.

    A picture is known by its bytes: it is looked for where the sample's key says, then
    in the folders. Samples whose picture is nowhere are left out.

    Raises: ActivationsError if the harvest has fewer samples than were held out
    """
    chosen = held_out.tolist()
    if chosen and chosen[-1] >= len(samples):
        raise ActivationsError(
            f"the harvest has {len(samples)} samples, none of number {chosen[-1]}"
        )
    found: list[Sample] = []
    pictures = _Pictures(folders)
    for number in chosen:
        if len(found) == limit:
            break
        line = samples[number]
        digest = line.get("picture")
        path = pictures.find(digest, str(line["key"])) if digest else None
        if digest and path is None:
            continue
        found.append(
            Sample(
                key=str(line["key"]),
                prompt=str(line["prompt"]),
                picture=PictureFile(path) if path else None,
                concepts=tuple(line.get("concepts", ())),
            )
        )
    return found


class _Pictures:
    """Files by the digest of their bytes, read no further than needed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._known: dict[str, Path] = {}
        self._unread: Iterator[Path] = (
            path
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        )

    def find(self, digest: str, key: str) -> Path | None:
        if _digest(Path(key)) == digest:
            return Path(key)
        while digest not in self._known:
            path = next(self._unread, None)
            if path is None:
                return None
            if (theirs := _digest(path)) is not None:
                self._known[theirs] = path
        return self._known[digest]


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except (OSError, ValueError):
        return None
