# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures with ``labels.jsonl``: which concepts each of them shows."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_sauce.data.samples import PROMPT, PictureFile, Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import problems, read_lines

LABELS = "labels.jsonl"


class _Line(BaseModel):
    """One line; what else it holds is of no concern here."""

    model_config = ConfigDict(extra="ignore", strict=True)

    file: str
    concepts: list[str]
    prompt: str = PROMPT


def read_labelled(folder: str | Path) -> list[Sample]:
    """Return the pictures of a folder, a line of ``labels.jsonl`` each.

    Raises: ConfigError
    """
    folder = Path(folder)
    path = folder / LABELS
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; it needs a line a picture, such as "
            '{"file": "a.png", "concepts": ["dog"]}'
        ) from error
    samples = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"{path}, line {number}: {problems(error, 1)}") from error
        picture = folder / line.file
        if not picture.is_file():
            raise ConfigError(f"{path}, line {number}: there is no picture {picture}")
        samples.append(
            Sample(
                key=line.file,
                prompt=line.prompt,
                picture=PictureFile(picture),
                concepts=tuple(line.concepts),
            )
        )
    if not samples:
        raise ConfigError(f"{path} names no picture")
    return samples
