# SPDX-License-Identifier: Apache-2.0
"""Pictures and heat maps as data URIs, small enough to carry in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from torch import Tensor

# Anchors of the scale "plasma" (Smith and van der Walt, matplotlib; CC0) without its
# darkest part: readable on a grey picture, and for most colour-blind people.
_ANCHORS = (
    (106, 0, 168),
    (177, 42, 144),
    (225, 100, 98),
    (252, 166, 54),
    (240, 249, 33),
)
LEVELS = 16
"""Steps of the scale; 16 fit four bits a patch."""

_LEAST_OPACITY, _MOST_OPACITY = 90, 225
_SMALL_SIDE = 128
"""Pictures up to this side are kept as they are and shown with sharp pixels."""
_SIDES = (224, 168, 112, 80)
PICTURE_BYTES = 12 << 20
"""All pictures of a page together, before they are written as text."""


def scale_colours() -> list[tuple[int, int, int, int]]:
    """Return the heat scale as RGBA: nothing for no activation, then by strength."""
    places = np.linspace(0, len(_ANCHORS) - 1, LEVELS - 1)
    channels = np.array(_ANCHORS, dtype=float).T
    rgb = [np.interp(places, range(len(_ANCHORS)), channel) for channel in channels]
    alpha = np.linspace(_LEAST_OPACITY, _MOST_OPACITY, LEVELS - 1)
    colours = np.stack([*rgb, alpha], axis=1).round().astype(int).tolist()
    return [(0, 0, 0, 0), *(tuple(colour) for colour in colours)]


def heat_levels(
    grid: Tensor, most: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return each patch's step of the scale; what fires at all is at least 1.

    Shapes: grid [height, width] -> [height, width] uint8
    """
    shares = grid.float().numpy() / most if most > 0 else np.zeros(tuple(grid.shape))
    levels = np.ceil(np.clip(shares, 0, 1) * (LEVELS - 1))
    return levels.astype(np.uint8)


def heat_uri(grid: Tensor, most: float) -> str:
    """Return a heat map as a PNG, one pixel a patch; ``most`` is the scale's end."""
    from PIL import Image

    image = Image.fromarray(heat_levels(grid, most), mode="P")
    colours = scale_colours()
    image.putpalette([channel for colour in colours for channel in colour[:3]])
    file = io.BytesIO()
    opacity = bytes(colour[3] for colour in colours)
    image.save(file, "PNG", transparency=opacity, bits=4, optimize=True)
    return _uri("png", file.getvalue())


def picture_uris(
    pictures: Mapping[int, Tensor], most_bytes: int = PICTURE_BYTES
) -> dict[int, str]:
    """Return pictures as data URIs; large ones as small as it takes to fit.

    Shapes: pictures [H, W, 3] uint8 each
    """
    for side in _SIDES:
        encoded = {row: _encoded(x, side) for row, x in pictures.items()}
        if sum(len(data) for _, data in encoded.values()) <= most_bytes:
            break
    return {row: _uri(kind, data) for row, (kind, data) in encoded.items()}


def is_small(picture: Tensor) -> bool:
    """Return whether a picture is shown with its pixels sharp."""
    return max(picture.shape[:2]) <= _SMALL_SIDE


def _encoded(picture: Tensor, side: int) -> tuple[str, bytes]:
    from PIL import Image

    image = Image.fromarray(picture.numpy())
    file = io.BytesIO()
    if is_small(picture):
        image.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=82)
    return "jpeg", file.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
