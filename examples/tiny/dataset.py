# SPDX-License-Identifier: Apache-2.0
"""Training pictures as arrays, drawn once in parallel and cached on disk."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from tiny.concepts import COLOURS, DOMAINS, FOREGROUNDS, MATERIALS, NOTHING
from tiny.world import Renderer

CACHE = Path(__file__).parent / ".cache"
SHARD_SIZE = 4_000
NUM_SHARDS = 25
HELD_OUT_SEED = 1_000_000
"""Seeds from here on are never used for training."""

FOREGROUND_SHARES = {"objects": 0.42, "sports": 0.18, "emotions": 0.32, NOTHING: 0.08}
"""Faces are the hardest to tell apart, so each is drawn more often."""


@dataclass(frozen=True)
class Pictures:
    """Pictures and their labels; foreground ``len(FOREGROUNDS)`` is nothing."""

    images: NDArray[np.uint8]
    """Shape [num_pictures, 56, 56, 3]."""
    labels: NDArray[np.int64]
    """Indices of foreground, colour, material. Shape [num_pictures, 3]."""
    coverage: NDArray[np.uint8]
    """Icon share of each patch in 255ths. Shape [num_pictures, 49]."""

    def __len__(self) -> int:
        return len(self.images)


def draw_pictures(seed: int, count: int, styles: tuple[str, ...]) -> Pictures:
    """Draw ``count`` pictures of evenly mixed styles from one seed."""
    rng = np.random.default_rng(seed)
    renderer = Renderer(styles)
    names, shares = zip(*FOREGROUND_SHARES.items(), strict=True)
    images, labels, coverage = [], [], []
    for _ in range(count):
        kind = str(rng.choice(names, p=shares))
        foreground = NOTHING if kind == NOTHING else str(rng.choice(DOMAINS[kind]))
        picture = renderer.picture(rng, foreground)
        images.append(np.asarray(picture.image))
        labels.append(
            (
                (*FOREGROUNDS, NOTHING).index(foreground),
                COLOURS.index(picture.colour),
                MATERIALS.index(picture.material),
            )
        )
        coverage.append(np.rint(picture.coverage.reshape(-1) * 255))
    return Pictures(
        np.stack(images), np.array(labels, np.int64), np.array(coverage, np.uint8)
    )


def _cached_shard(seed: int, styles: tuple[str, ...]) -> Path:
    path = CACHE / f"pictures-{seed}.npz"
    if not path.exists():
        pictures = draw_pictures(seed, SHARD_SIZE, styles)
        partial = path.with_suffix(".part.npz")
        np.savez(
            partial,
            images=pictures.images,
            labels=pictures.labels,
            coverage=pictures.coverage,
        )
        os.replace(partial, path)
    return path


def training_pictures(seed: int, styles: tuple[str, ...]) -> Pictures:
    """Return all training pictures, drawing the shards not yet cached."""
    CACHE.mkdir(exist_ok=True)
    seeds = [seed * NUM_SHARDS + i for i in range(NUM_SHARDS)]
    if seeds[-1] >= HELD_OUT_SEED:
        raise ValueError(f"seed must be below {HELD_OUT_SEED // NUM_SHARDS}")
    with ProcessPoolExecutor(2) as pool:
        jobs = pool.map(_cached_shard, seeds, [styles] * NUM_SHARDS)
        paths = list(track(jobs, "pictures", total=NUM_SHARDS))
    shards = [np.load(path) for path in paths]
    return Pictures(
        np.concatenate([shard["images"] for shard in shards]),
        np.concatenate([shard["labels"] for shard in shards]),
        np.concatenate([shard["coverage"] for shard in shards]),
    )


IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.25, 0.25, 0.25)


def pixel_values(images: NDArray[np.uint8]) -> torch.Tensor:
    """Normalise pictures as the saved image processor does.

    Shapes: [num_pictures, 56, 56, 3] -> [num_pictures, 3, 56, 56]
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    return (pixels - mean) / torch.tensor(IMAGE_STD).view(3, 1, 1)
