# SPDX-License-Identifier: Apache-2.0
"""A bundle of random SAEs whose edits move every answer: mechanics, not meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.sae import SAEWeights

D_SAE = 96


def random_sae(seed: int, d_model: int, **kind: Any) -> SAEWeights:
    """Return a random SAE (ReLU, unless told) with unit-norm decoder rows."""
    rng = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(d_model, D_SAE, generator=rng) / d_model**0.5
    W_dec = torch.randn(D_SAE, d_model, generator=rng)
    return SAEWeights(
        W_enc=W_enc,
        W_dec=W_dec / W_dec.norm(dim=1, keepdim=True),
        b_enc=torch.randn(D_SAE, generator=rng) * 0.1,
        b_dec=torch.randn(d_model, generator=rng) * 0.1,
        **kind,
    )


def write_random_bundle(
    path: Path,
    model_dir: Path,
    vision_kind: Mapping[str, Any] = MappingProxyType({}),
    decoder_kind: Mapping[str, Any] = MappingProxyType({}),
    layers: Sequence[str] = ("decoder.1",),
) -> Path:
    """Write a bundle for a model: concepts at the vision site, the decoder, both."""
    fingerprint = fingerprint_model(model_dir)
    assert fingerprint.vision is not None
    assert fingerprint.vision.hidden_size is not None
    assert fingerprint.text.hidden_size is not None
    vision = SiteEdit.uniform(range(0, 24), gamma=-4.0, shift=-1.0, gate=0.05)
    decoder = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
    shared = SiteEdit.uniform(range(20, 50), gamma=-2.0, shift=0.5)
    concepts = [
        Concept(name="seen", domain="random", edits={"vision": vision}),
        Concept(name="read", domain="random", edits=dict.fromkeys(layers, decoder)),
        Concept(
            name="both",
            domain="random",
            edits=dict.fromkeys(("vision", *layers), shared),
        ),
    ]
    width = fingerprint.text.hidden_size
    sites = {"vision": random_sae(1, fingerprint.vision.hidden_size, **vision_kind)}
    for seed, layer in enumerate(layers, 2):
        sites[layer] = random_sae(seed, width, **decoder_kind)
    Bundle.build(fingerprint, sites, Catalogue(concepts)).save(path)
    return path


def write_decoder_bundle(
    path: Path, model_dir: Path, edits: Mapping[str, SiteEdit], site: str = "decoder.1"
) -> Path:
    """Write a bundle whose concepts, by name, are edited behind one layer alone."""
    fingerprint = fingerprint_model(model_dir)
    assert fingerprint.text.hidden_size is not None
    catalogue = Catalogue(
        Concept(name=name, domain="random", edits={site: edit})
        for name, edit in edits.items()
    )
    sites = {site: random_sae(2, fingerprint.text.hidden_size)}
    Bundle.build(fingerprint, sites, catalogue).save(path)
    return path
