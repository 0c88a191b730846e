# SPDX-License-Identifier: Apache-2.0
"""Pictures of sauce-tiny's world as its tower sees them, drawn when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tiny.concepts import COLOURS, FOREGROUNDS, MATERIALS, NOTHING, TRAIN_STYLES
from tiny.conversations import Scene
from tiny.dataset import pixel_values
from tiny.export import MODEL_FOLDER
from tiny.model import penultimate
from tiny.world import Picture, Renderer

NOTHING_SHARE = 0.06


@dataclass(frozen=True)
class PictureBatch:
    """What the tower sees in some pictures, and what is there."""

    hidden: Tensor
    """Shape [num_pictures, 49, d_vision]."""
    scenes: list[Scene]
    labels: Tensor
    """Indices of foreground, colour, material. Shape [num_pictures, 3]."""
    coverage: Tensor
    """Share of each patch that the icon covers. Shape [num_pictures, 49]."""


def scene_of(picture: Picture) -> Scene:
    """Return what a picture shows."""
    return Scene(picture.foreground, picture.colour, picture.material)


def load_tower() -> Any:
    """Return sauce-tiny, whose tower is all that is used of it."""
    model = LlavaForConditionalGeneration.from_pretrained(
        MODEL_FOLDER, dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


@cache
def _renderer() -> Renderer:
    return Renderer(TRAIN_STYLES)


@torch.no_grad()
def see(pictures: Sequence[Picture], tower: Any) -> PictureBatch:
    """Return pictures as the tower sees them."""
    images = np.stack([np.asarray(picture.image) for picture in pictures])
    scenes = [scene_of(picture) for picture in pictures]
    foregrounds = (*FOREGROUNDS, NOTHING)
    labels = [
        (
            foregrounds.index(scene.foreground),
            COLOURS.index(scene.colour),
            MATERIALS.index(scene.material),
        )
        for scene in scenes
    ]
    coverage = np.stack([picture.coverage.reshape(-1) for picture in pictures])
    return PictureBatch(
        penultimate(tower, pixel_values(images)),
        scenes,
        torch.tensor(labels),
        torch.from_numpy(coverage),
    )


def draw_batch(rng: np.random.Generator, count: int, tower: Any) -> PictureBatch:
    """Draw pictures of anything, some of nothing."""
    pictures = [
        _renderer().picture(rng, NOTHING if rng.random() < NOTHING_SHARE else None)
        for _ in range(count)
    ]
    return see(pictures, tower)
