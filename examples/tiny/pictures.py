# SPDX-License-Identifier: Apache-2.0
"""The held-out pictures shipped with the example.

``PYTHONPATH=examples python -m tiny.pictures`` draws them anew, bit for bit.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tiny.concepts import (
    COLOURS,
    FOREGROUNDS,
    HELD_OUT_STYLE,
    MATERIALS,
    NOTHING,
    TRAIN_STYLES,
)
from tiny.dataset import HELD_OUT_SEED
from tiny.world import Picture, Renderer
from vllm_sauce.data.pictures import decode_picture

PICTURE_FOLDER = Path(__file__).parent / "pictures"
LABELS = "labels.jsonl"
NUM_TRAIN_STYLE, NUM_HELD_OUT_STYLE, NUM_EMPTY = 300, 60, 10
PICTURES_SEED = HELD_OUT_SEED + 1_000


@dataclass(frozen=True)
class LabelledPicture:
    """One shipped picture and what is in it."""

    file: Path
    style: str
    concepts: tuple[str, ...]
    foreground: str
    colour: str
    material: str

    @property
    def image(self) -> Image.Image:
        """The picture itself."""
        return decode_picture(self.file.read_bytes(), str(self.file))


def shipped_pictures(folder: Path = PICTURE_FOLDER) -> list[LabelledPicture]:
    """Read the pictures' labels."""
    rows = map(json.loads, (folder / LABELS).read_text().splitlines())
    return [
        LabelledPicture(
            folder / row["file"],
            row["style"],
            tuple(row["concepts"]),
            row["foreground"],
            row["colour"],
            row["material"],
        )
        for row in rows
    ]


def draw_shipped() -> Iterator[Picture]:
    """Draw the pictures: every concept equally often, in shuffled pairs."""
    rng = np.random.default_rng(PICTURES_SEED)
    for styles, count, empty in (
        (TRAIN_STYLES, NUM_TRAIN_STYLE, NUM_EMPTY),
        ((HELD_OUT_STYLE,), NUM_HELD_OUT_STYLE, 0),
    ):
        renderer = Renderer(styles)
        colours = rng.permutation(np.resize(COLOURS, count))
        materials = rng.permutation(np.resize(MATERIALS, count))
        names = [*np.resize(FOREGROUNDS, count - empty), *[NOTHING] * empty]
        for i in range(count):
            yield renderer.picture(
                rng,
                str(names[i]),
                str(colours[i]),
                str(materials[i]),
                styles[(i // len(FOREGROUNDS)) % len(styles)],
            )


def main() -> None:
    """Write the PNG files and ``labels.jsonl``."""
    PICTURE_FOLDER.mkdir(exist_ok=True)
    lines = []
    for i, picture in enumerate(draw_shipped()):
        file = f"{i:03d}.png"
        picture.image.save(PICTURE_FOLDER / file, optimize=True)
        row = {
            "file": file,
            "style": picture.style,
            "concepts": picture.concepts,
            "foreground": picture.foreground,
            "colour": picture.colour,
            "material": picture.material,
        }
        lines.append(json.dumps(row))
    (PICTURE_FOLDER / LABELS).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
