# SPDX-License-Identifier: Apache-2.0
"""What a model is shown while its activations are taken: a prompt, often a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vllm_sauce.data.pictures import decode_picture
from vllm_sauce.errors import ActivationsError, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "What is in the picture?"
"""Asked about pictures when nothing else is given."""


class Picture(Protocol):
    """A picture wherever it is kept: a file, a row of a table."""

    @property
    def name(self) -> str:
        """What an error calls it."""

    def read(self) -> bytes:
        """Return the encoded picture.

        Raises: PictureError; ActivationsError if there is none
        """


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def read(self) -> bytes:
        """Return the file's bytes. Raises: PictureError"""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise PictureError(f"cannot read {self.path}: {error}") from error


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

    problem: str = ""
    """Why it cannot be shown; it keeps its place among the samples and fails alone."""

    def to_json(self) -> dict[str, object]:
        """Return a line of samples.jsonl: the picture as the digest of its bytes."""
        return {
            "key": self.key,
            "prompt": self.prompt,
            "picture": None if self.picture is None else picture_digest(self.picture),
            "concepts": list(self.concepts),
        }


def samples_of(
    key: str,
    prompts: Iterable[str],
    picture: Picture | None,
    concepts: tuple[str, ...],
) -> tuple[Sample, ...]:
    """Return what a model is shown: the picture with each prompt."""
    return tuple(
        Sample(
            key=f"{key}~{number}" if number else key,
            prompt=prompt,
            picture=picture,
            concepts=concepts,
        )
        for number, prompt in enumerate(prompts)
    )


def picture_digest(picture: Picture) -> str:
    """Return the SHA-256 of a picture's encoded bytes: equal pictures are one."""
    return hashlib.sha256(picture.read()).hexdigest()


def open_picture(picture: Picture) -> Image:
    """Decode a picture as RGB.

    Raises: PictureError; ActivationsError if there is none
    """
    return decode_picture(picture.read(), picture.name)


def chat_message(
    prompt: str, picture: Picture | None, digest: str | None
) -> dict[str, Any]:
    """Return a prompt as vLLM's chat takes it, the picture first.

    ``digest``: the picture's name there; equal pictures are encoded once.

    Raises: PictureError; ActivationsError if there is none
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    if picture is not None:
        part = {"type": "image_pil", "image_pil": open_picture(picture)}
        content.insert(0, {**part, "uuid": digest})
    return {"role": "user", "content": content}


def distinct(samples: Iterable[Sample]) -> tuple[list[Sample], dict[str, str]]:
    """Return samples without repetitions, and for each key left out the key kept.

    Two samples are the same if prompt, picture and concepts are; one that cannot be
    shown is like no other.

    Raises: ActivationsError if a key is used twice
    """
    kept: dict[str, Sample] = {}
    keys: set[str] = set()
    dropped: dict[str, str] = {}
    for sample in samples:
        if sample.key in keys:
            raise ActivationsError(f"two samples have the key {sample.key!r}")
        keys.add(sample.key)
        try:
            line = sample.to_json()
        except PictureError as error:
            sample = replace(sample, picture=None, problem=str(error))
        if sample.problem:
            content = f"key {sample.key}"
        else:
            del line["key"]
            content = json.dumps(line, sort_keys=True)
        if content in kept:
            dropped[sample.key] = kept[content].key
        else:
            kept[content] = sample
    return list(kept.values()), dropped
