# SPDX-License-Identifier: Apache-2.0
"""What a model is shown while its activations are taken: a prompt, often a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vllm_sauce.errors import ActivationsError

if TYPE_CHECKING:
    from PIL.Image import Image


class Picture(Protocol):
    """A picture wherever it is kept: a file, a row of a table."""

    @property
    def name(self) -> str:
        """What an error calls it."""
        ...

    def read(self) -> bytes:
        """Return the encoded picture. Raises: ActivationsError"""
        ...


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def read(self) -> bytes:
        """Return the file's bytes. Raises: ActivationsError"""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ActivationsError(f"cannot read {self.path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt, and what it stands for."""

    key: str
    """Stable name, unique among the samples: a path, "file.jsonl#17"."""

    prompt: str
    """The user's words; the model's chat template is put around them."""

    picture: Picture | None = None
    """Shown before the words."""

    concepts: tuple[str, ...] = ()
    """Concepts that this sample has."""

    def to_json(self) -> dict[str, object]:
        """Return a line of samples.jsonl: the picture as the digest of its bytes."""
        return {
            "key": self.key,
            "prompt": self.prompt,
            "picture": None if self.picture is None else picture_digest(self.picture),
            "concepts": list(self.concepts),
        }


def picture_digest(picture: Picture) -> str:
    """Return the SHA-256 of a picture's encoded bytes: equal pictures are one."""
    return hashlib.sha256(picture.read()).hexdigest()


def open_picture(picture: Picture) -> Image:
    """Decode a picture as RGB.

    Raises: ActivationsError
    """
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(picture.read())).convert("RGB")
    except UnidentifiedImageError as error:
        # Its words name a place in memory, another one each time.
        raise ActivationsError(f"{picture.name} is no picture that is known") from error
    except (OSError, ValueError) as error:
        raise ActivationsError(f"{picture.name} is no picture: {error}") from error


def distinct(samples: Iterable[Sample]) -> tuple[list[Sample], dict[str, str]]:
    """Return samples without repetitions, and for each key left out the key kept.

    Two samples are the same if prompt, picture and concepts are.

    Raises: ActivationsError if a key is used twice
    """
    kept: dict[str, Sample] = {}
    keys: set[str] = set()
    dropped: dict[str, str] = {}
    for sample in samples:
        if sample.key in keys:
            raise ActivationsError(f"two samples have the key {sample.key!r}")
        keys.add(sample.key)
        line = sample.to_json()
        del line["key"]
        content = json.dumps(line, sort_keys=True)
        if content in kept:
            dropped[sample.key] = kept[content].key
        else:
            kept[content] = sample
    return list(kept.values()), dropped
