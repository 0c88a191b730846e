# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAELens: ``cfg.json`` and ``sae_weights.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.files import read_object
from vllm_sauce.sae.folding import fold_decoder_norm, fold_gated
from vllm_sauce.sae.sae_lens_config import SAELensConfig, parse_config
from vllm_sauce.sae.tensors_file import read_tensors
from vllm_sauce.sae.weights import SAEWeights

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
"""Names that the factors of a finetuned SAE's latents have had."""

_GATE = ("r_mag", "b_gate", "b_mag")
_OWN_TENSORS = {
    "standard": {"b_enc"},
    "topk": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": set(_GATE),
}


def from_sae_lens(path: str | Path) -> SAEWeights:
    """Read a standard, jumprelu, topk or gated SAE that SAELens saved.

    A gated one becomes the jumprelu SAE that it is; norms of the decoder that scale
    activations, and factors of finetuning, are folded into the weights.

    Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
    Source: SAELens v6, ``SAE.save_model``; v5, ``SAE.decode``
    """
    config, weights = Path(path) / CONFIG_FILE, Path(path) / WEIGHTS_FILE
    try:
        cfg = read_object(config, BundleCorruptError)
    except FileNotFoundError:
        message = f"no SAELens checkpoint: {config} is missing"
        raise BundleNotFoundError(message) from None
    return folded_sae(cfg, config, read_tensors(weights))[0]


def folded_sae(
    cfg: Mapping[str, object], source: object, tensors: dict[str, Tensor]
) -> tuple[SAEWeights, tuple[str, ...]]:
    """Return the SAE of a cfg.json and its tensors, and in words what was folded.

    Raises: UnsupportedSAEError
    """
    config = parse_config(cfg, source)
    architecture, folded = config.architecture, []
    factors = _finetuning(tensors, config)
    names = {"W_enc", "W_dec", "b_dec"} | _OWN_TENSORS[architecture]
    if set(tensors) != names:
        raise UnsupportedSAEError(
            f"a {architecture} SAE has the tensors {sorted(names)}, "
            f"got {sorted(tensors)}"
        )
    gate = [tensors.pop(name) for name in _GATE] if architecture == "gated" else []
    if gate:
        # Stands in until the gate is folded.
        tensors["b_enc"] = gate[-1]
    named: dict[str, Any] = dict(tensors)
    sae = SAEWeights(
        **named,
        architecture="standard" if gate else architecture,
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        k=config.k,
        normalize_activations=config.normalize_activations,
    )
    if gate:
        sae = fold_gated(sae, *gate)
        folded.append("gate into a threshold")
    if config.rescale_acts_by_decoder_norm:
        sae = fold_decoder_norm(sae)
        folded.append("decoder norms into the encoder")
    if factors is not None:
        sae = replace(sae, W_dec=sae.W_dec * factors[:, None])
        folded.append("factors of finetuning into the decoder")
    return sae, tuple(folded)


def _finetuning(tensors: dict[str, Tensor], config: SAELensConfig) -> Tensor | None:
    """Take the factors of finetuning out of the tensors; None if they do nothing."""
    for name in _FINETUNED:
        factors = tensors.pop(name, None)
        # For a while every checkpoint had them, and they were 1.
        if factors is None or torch.allclose(factors, torch.ones_like(factors)):
            continue
        if not config.finetuning_scaling_factor:
            raise UnsupportedSAEError(
                f"{name} holds factors, but finetuning_scaling_factor is not true: the "
                "two files belong to different SAEs"
            )
        if factors.shape != tensors["W_dec"].shape[:1]:
            raise UnsupportedSAEError(
                f"{name} must have one number for each latent, got "
                f"{list(factors.shape)}"
            )
        return factors
    return None
