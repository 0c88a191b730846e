# SPDX-License-Identifier: Apache-2.0
"""Samples in sauce-tiny's world, whose truth is known patch by patch; random SAEs."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch

from tiny.world import Picture, Renderer
from vllm_sauce.data.samples import Sample
from vllm_sauce.sae import SAEWeights


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


def random_sae(kind: str) -> SAEWeights:
    """Return an SAE of 20 latents, 8 wide: standard, jumprelu, topk, or normed."""
    generator = torch.Generator().manual_seed(3)
    normed = "layer_norm" if kind == "normed" else "none"
    return SAEWeights(
        W_enc=torch.randn(8, 20, generator=generator),
        W_dec=torch.randn(20, 8, generator=generator),
        b_enc=torch.randn(20, generator=generator),
        b_dec=torch.randn(8, generator=generator),
        threshold=torch.rand(20, generator=generator) if kind == "jumprelu" else None,
        architecture=kind if kind in ("jumprelu", "topk") else "standard",
        k=5 if kind == "topk" else None,
        normalize_activations=normed,
    )
