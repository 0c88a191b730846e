# SPDX-License-Identifier: Apache-2.0
"""Samples drawn in sauce-tiny's world, whose truth is known patch by patch."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from tiny.world import Picture, Renderer
from vllm_sauce.training.samples import Sample


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A picture that is in no file."""

    name: str
    data: bytes

    def read(self) -> bytes:
        """Return it as PNG."""
        return self.data


def draw(foregrounds: list[str], seed: int = 0) -> list[Picture]:
    """Draw one picture of each foreground."""
    rng = np.random.default_rng(2_000_000 + seed)
    renderer = Renderer()
    return [renderer.picture(rng, name) for name in foregrounds]


def sample_of(picture: Picture, key: str) -> Sample:
    """Return a picture as a sample that says what it shows."""
    file = io.BytesIO()
    picture.image.save(file, "PNG")
    return Sample(
        key=key,
        prompt="What is in the picture?",
        picture=DrawnPicture(key, file.getvalue()),
        concepts=picture.concepts,
    )
