# SPDX-License-Identifier: Apache-2.0
"""The picture world: one icon (or none) on one material in one colour, 56 x 56."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from tiny.concepts import (
    COLOURS,
    CONCEPTS,
    DOMAIN_OF,
    DOMAINS,
    FOREGROUND_DOMAINS,
    FOREGROUNDS,
    HELD_OUT_STYLE,
    MATERIALS,
    NOTHING,
    STYLES,
    TRAIN_STYLES,
)
from tiny.textures import texture

__all__ = [
    "COLOURS",
    "CONCEPTS",
    "DOMAINS",
    "DOMAIN_OF",
    "FOREGROUNDS",
    "HELD_OUT_STYLE",
    "MATERIALS",
    "NOTHING",
    "PICTURE_SIZE",
    "STYLES",
    "TRAIN_STYLES",
    "Picture",
    "Renderer",
]

PICTURE_SIZE = 56
ICON_SIZES = (28, 41)
"""Smallest and largest side of an icon, in pixels, before it is turned."""
MAX_TURN_DEGREES = 20.0
RENDER_SIZE = 84
"""Side at which an icon is rendered once; then it is turned and shrunk."""
ICON_FOLDER = Path(__file__).parent / "icons"


@dataclass(frozen=True)
class Picture:
    """One picture and what is in it."""

    image: Image.Image
    foreground: str
    """A concept of objects, sports or emotions, or ``NOTHING``."""
    colour: str
    material: str
    style: str
    coverage: NDArray[np.float32]
    """Share of each 8 x 8 patch that the icon covers. Shape [7, 7]."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of all concepts in the picture."""
        names = (self.foreground, self.colour, self.material)
        return tuple(name for name in names if name != NOTHING)

    def answer(self, domain: str) -> str | None:
        """Return the picture's concept in a domain, or None."""
        return next((c for c in self.concepts if DOMAIN_OF[c] == domain), None)


@cache
def _icon(style: str, concept: str) -> Image.Image:
    """Render one icon, fitted into a transparent square of ``RENDER_SIZE``."""
    icons = json.loads((ICON_FOLDER / f"{style}.json").read_text())["icons"]
    box = " ".join(str(side) for side in icons[concept]["view_box"])
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
        f'width="{RENDER_SIZE}" height="{RENDER_SIZE}">{icons[concept]["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (RENDER_SIZE, RENDER_SIZE))
    square.paste(icon, ((RENDER_SIZE - icon.width) // 2,) * 2)
    return square


class Renderer:
    """Draws pictures with the icons of some styles."""

    def __init__(self, styles: Sequence[str] = TRAIN_STYLES) -> None:
        unknown = set(styles) - set(STYLES)
        if unknown or not styles:
            raise ValueError(f"styles must be some of {STYLES}, got {tuple(styles)}")
        self.styles = tuple(styles)

    def picture(
        self,
        rng: np.random.Generator,
        foreground: str | None = None,
        colour: str | None = None,
        material: str | None = None,
        style: str | None = None,
    ) -> Picture:
        """Draw one picture; whatever is not given is drawn from ``rng``."""
        style = style or str(rng.choice(self.styles))
        if foreground is None:
            domain = str(rng.choice(FOREGROUND_DOMAINS))
            foreground = str(rng.choice(DOMAINS[domain]))
        colour = colour or str(rng.choice(COLOURS))
        material = material or str(rng.choice(MATERIALS))
        pixels = texture(rng, colour, material, PICTURE_SIZE)
        image = Image.fromarray(pixels)
        alpha = np.zeros((PICTURE_SIZE, PICTURE_SIZE), np.float32)
        if foreground != NOTHING:
            icon, corner = _placed_icon(rng, style, foreground)
            image.paste(icon, corner, icon)
            layer = Image.new("L", image.size)
            layer.paste(icon.getchannel("A"), corner)
            alpha = np.asarray(layer, np.float32) / np.float32(255)
        coverage: NDArray[np.float32] = alpha.reshape(7, 8, 7, 8).mean((1, 3))
        return Picture(image, foreground, colour, material, style, coverage)


def _placed_icon(
    rng: np.random.Generator, style: str, concept: str
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a turned, shrunk icon and the corner where it goes."""
    side = int(rng.integers(ICON_SIZES[0], ICON_SIZES[1] + 1))
    turn = float(rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES))
    icon = _icon(style, concept).rotate(turn, Image.Resampling.BILINEAR, expand=True)
    side = round(side * icon.width / RENDER_SIZE)
    icon = icon.resize((side, side), Image.Resampling.BOX)
    # The turned square's empty corners may leave the picture, the icon may not.
    box = icon.getbbox() or (0, 0, side, side)
    x = int(rng.integers(-box[0], max(PICTURE_SIZE - box[2], -box[0]) + 1))
    y = int(rng.integers(-box[1], max(PICTURE_SIZE - box[3], -box[1]) + 1))
    return icon, (x, y)
