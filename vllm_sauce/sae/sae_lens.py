# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAELens: ``cfg.json`` and ``sae_weights.safetensors``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
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
    folder = Path(path)
    config = parse_config(_read_config(folder / CONFIG_FILE), folder / CONFIG_FILE)
    architecture = config.architecture
    tensors = read_tensors(folder / WEIGHTS_FILE)
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
    sae = SAEWeights(
        **tensors,
        architecture="standard" if gate else architecture,
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        k=config.k,
        normalize_activations=config.normalize_activations,
    )
    if gate:
        sae = fold_gated(sae, *gate)
    if config.rescale_acts_by_decoder_norm:
        sae = fold_decoder_norm(sae)
    return sae if factors is None else replace(sae, W_dec=sae.W_dec * factors[:, None])


def _read_config(path: Path) -> dict[str, object]:
    try:
        return read_object(path, BundleCorruptError)
    except FileNotFoundError:
        raise BundleNotFoundError(f"no SAELens checkpoint: {path} is missing") from None


def _finetuning(tensors: dict[str, Tensor], config: SAELensConfig) -> Tensor | None:
    """Take the factors of finetuning out of the tensors; None if they do nothing."""
    for name in FINETUNED:
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
