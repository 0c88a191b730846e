# SPDX-License-Identifier: Apache-2.0
"""Held-out samples of a harvest with their pictures, which the harvest names only."""

from __future__ import annotations

from collections.abc import Sequence
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
    known: dict[str | None, Path] = {}
    there = (path for folder in folders for path in sorted(folder.rglob("*")))
    files = filter(Path.is_file, there)

    def find(digest: str, key: str) -> Path | None:
        if _digest(Path(key)) == digest:
            return Path(key)
        # No file is read before it is needed.
        while digest not in known and (file := next(files, None)):
            known[_digest(file)] = file
        return known.get(digest)

    for line in map(samples.__getitem__, chosen):
        if len(found) == limit:
            break
        key, digest = str(line["key"]), line.get("picture")
        path = find(digest, key) if digest else None
        if digest and path is None:
            continue
        found.append(
            Sample(
                key=key,
                prompt=str(line["prompt"]),
                picture=PictureFile(path) if path else None,
                concepts=tuple(line.get("concepts", ())),
            )
        )
    return found


def _digest(path: Path) -> str | None:
    """Return the digest of a file's bytes; None of what cannot be read."""
    try:
        return file_sha256(path)
    except (OSError, ValueError):
        return None
