# SPDX-License-Identifier: Apache-2.0
"""Ten materials as small procedural patterns, drawn in any of ten colours.

A pattern is a brightness field [size, size] around 0 (negative is darker); the
colour is laid under it, so every material can be had in every colour.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
Pattern = Callable[[np.random.Generator, int], Field]

BASE_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 42, 42),
    "green": (58, 160, 66),
    "blue": (48, 92, 210),
    "yellow": (236, 212, 52),
    "orange": (240, 132, 30),
    "purple": (128, 58, 178),
    "pink": (245, 140, 188),
    "brown": (118, 74, 42),
    "gray": (132, 132, 132),
    "white": (240, 240, 240),
}
COLOUR_JITTER = 12.0
SHADOW, LIGHT = 0.55, 0.45
"""Share of black or white mixed in where a pattern is at -1 or +1."""


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> Field:
    """Return smooth noise in about [-1, 1] from a rows x columns random grid."""
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    image = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def _axes(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


def _wood(rng: np.random.Generator, size: int) -> Field:
    _, y = _axes(size)
    rings = y * rng.uniform(0.09, 0.14) + 0.9 * _noise(rng, size, 5, 3)
    grain = np.sin(2 * np.pi * rings + rng.uniform(0, 6))
    return np.float32(0.55) * grain + 0.3 * _noise(rng, size, size, 4)


def _brick(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    height, width = rng.uniform(8, 10), rng.uniform(16, 20)
    y = y + rng.uniform(0, height)
    row = np.floor(y / height)
    column = (x + rng.uniform(0, width)) / width + 0.5 * (row % 2)
    shade = rng.uniform(-0.5, 0.1, (16, 16))
    field = shade[row.astype(int) % 16, np.floor(column).astype(int) % 16]
    mortar = (y % height < 1.7) | ((column % 1) * width < 1.7)
    return np.where(mortar, 0.9, field).astype(np.float32)


def _metal(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    brushed = 0.22 * _noise(rng, size, 3, size)
    slope, start = rng.uniform(-0.5, 0.5), rng.uniform(0, 1)
    band = ((x + slope * y) / size * 1.3 + start) % 1
    shine = np.exp(-(((band - 0.5) / 0.13) ** 2))
    return (brushed + 1.1 * shine - 0.4).astype(np.float32)


def _grass(rng: np.random.Generator, size: int) -> Field:
    field = np.full((size + 16, size + 16), -0.7, np.float32)
    blades = 170
    xs = rng.integers(0, size + 8, blades)
    ys = np.sort(rng.integers(0, size + 8, blades))
    shades = rng.uniform(-0.5, 0.75, blades)
    leans = rng.uniform(-0.45, 0.45, blades)
    length = np.arange(8)
    columns = 4 + xs[:, None] + np.rint(leans[:, None] * length).astype(int)
    field[ys[:, None] + 7 - length, columns] = shades[:, None]
    return field[8 : 8 + size, 8 : 8 + size]


def _water(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    phase = rng.uniform(0, 6, 3)
    warp = 2.2 * np.sin(x * rng.uniform(0.2, 0.3) + phase[0])
    warp += 2.0 * _noise(rng, size, 4, 4)
    wave = np.sin((y + warp) * rng.uniform(0.6, 0.75) + phase[1])
    return (1.3 * np.maximum(wave, 0) ** 3 - 0.45).astype(np.float32)


def _fabric(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    pitch = 2 * np.pi / rng.uniform(4.0, 5.0)
    x, y = x + rng.uniform(0, 5), y + rng.uniform(0, 5)
    over = np.sin(x * pitch / 2) * np.sin(y * pitch / 2) > 0
    weave = np.where(over, np.abs(np.sin(y * pitch)), -np.abs(np.sin(x * pitch)))
    return (0.75 * weave + 0.1 * _noise(rng, size, 6, 6)).astype(np.float32)


def _marble(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / size
    warp = 0.55 * _noise(rng, size, 4, 4) + 0.22 * _noise(rng, size, 9, 9)
    veins = 1 - np.abs(np.sin(np.pi * (rng.uniform(1.6, 2.2) * along + warp)))
    return (0.35 + 0.15 * warp - 1.5 * veins**5).astype(np.float32)


def _sand(rng: np.random.Generator, size: int) -> Field:
    grains = rng.uniform(-1, 1, (size, size)).astype(np.float32)
    return 0.6 * grains + 0.15 * _noise(rng, size, 4, 3)


def _tile(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    pitch = rng.uniform(12, 16)
    x, y = (x + rng.uniform(0, pitch)) % pitch, (y + rng.uniform(0, pitch)) % pitch
    glaze = 0.5 - 0.5 * (x + y) / (2 * pitch)
    return np.where((x < 2) | (y < 2), -0.95, glaze).astype(np.float32)


def _leather(rng: np.random.Generator, size: int) -> Field:
    x, y = _axes(size)
    cells = 8 + 2
    pitch = size / 8
    seeds = rng.uniform(0.1, 0.9, (cells, cells, 2))
    shades = rng.uniform(-0.15, 0.25, (cells, cells))
    row, column = (y // pitch).astype(int), (x // pitch).astype(int)
    distances, candidates = [], []
    for i in range(3):
        for j in range(3):
            r, c = row + i, column + j
            sy = (r - 1 + seeds[r, c, 0]) * pitch
            sx = (c - 1 + seeds[r, c, 1]) * pitch
            distances.append(np.hypot(x - sx, y - sy))
            candidates.append(shades[r, c])
    stack = np.stack(distances)
    nearest, second = np.partition(stack, 1, axis=0)[:2]
    shade = np.take_along_axis(np.stack(candidates), stack.argmin(0)[None], 0)[0]
    return np.where(second - nearest < 1.5, -0.75, shade + 0.1).astype(np.float32)


PATTERNS: dict[str, Pattern] = {
    "wood": _wood,
    "brick": _brick,
    "metal": _metal,
    "grass": _grass,
    "water": _water,
    "fabric": _fabric,
    "marble": _marble,
    "sand": _sand,
    "tile": _tile,
    "leather": _leather,
}


def texture(
    rng: np.random.Generator, colour: str, material: str, size: int
) -> NDArray[np.uint8]:
    """Draw one background.

    Shapes: -> [size, size, 3] uint8
    """
    base = np.asarray(BASE_COLOURS[colour], np.float32)
    base = base + rng.normal(0, COLOUR_JITTER / 4, 3).astype(np.float32)
    base = base + np.float32(rng.uniform(-COLOUR_JITTER, COLOUR_JITTER))
    field = np.clip(PATTERNS[material](rng, size), -1, 1)[..., None]
    light = np.maximum(field, 0) * LIGHT
    shadow = np.maximum(-field, 0) * SHADOW
    # White has no room for light and gray must not reach white or black.
    if colour == "white":
        light, shadow = 0 * light, 0.55 * shadow + 0.3 * (LIGHT - light)
    elif colour == "gray":
        light, shadow = 0.6 * light, 0.7 * shadow
    pixels = base * (1 - shadow) + (255 - base) * light * (1 - shadow)
    return np.clip(pixels, 0, 255).astype(np.uint8)
