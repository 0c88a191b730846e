# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAELens v6: ``cfg.json`` and ``sae_weights.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vllm_sauce.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.sae.architectures import check_architecture
from vllm_sauce.sae.folding import fold_decoder_norm, fold_gated
from vllm_sauce.sae.normalization import check_normalization
from vllm_sauce.sae.weights import SAEWeights

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_OWN_TENSORS = {
    "standard": {"b_enc"},
    "topk": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": {"r_mag", "b_gate", "b_mag"},
}


def from_sae_lens(path: str | Path) -> SAEWeights:
    """Read a standard, jumprelu, topk or gated SAE that SAELens saved.

    A gated one becomes the jumprelu SAE that it is; norms of the decoder that scale
    activations are folded into the weights.

    Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
    Source: SAELens v6, ``SAE.save_model``
    """
    folder = Path(path)
    cfg = _read_config(folder / CONFIG_FILE)
    architecture = cfg.get("architecture")
    if not isinstance(architecture, str):
        raise UnsupportedSAEError(f"{folder / CONFIG_FILE} names no architecture")
    if architecture != "gated":
        check_architecture(architecture)
    normalization = _check_options(cfg, architecture)
    apply_b_dec = cfg.get("apply_b_dec_to_input", True)
    if not isinstance(apply_b_dec, bool):
        raise UnsupportedSAEError(
            f"apply_b_dec_to_input must be true or false, got {apply_b_dec!r}"
        )
    tensors = _read_weights(folder / WEIGHTS_FILE)
    names = {"W_enc", "W_dec", "b_dec"} | _OWN_TENSORS[architecture]
    if set(tensors) != names:
        raise UnsupportedSAEError(
            f"a {architecture} SAE has the tensors {sorted(names)}, "
            f"got {sorted(tensors)}"
        )
    if architecture == "gated":
        biases = [tensors.pop(name) for name in ("r_mag", "b_gate", "b_mag")]
        W_enc, b_enc, threshold = fold_gated(tensors["W_enc"], *biases)
        tensors |= {"W_enc": W_enc, "b_enc": b_enc, "threshold": threshold}
        architecture = "jumprelu"
    if cfg.get("rescale_acts_by_decoder_norm", False):
        W_enc, b_enc, W_dec = fold_decoder_norm(
            tensors["W_enc"], tensors["b_enc"], tensors["W_dec"]
        )
        tensors |= {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}
    return SAEWeights(
        **tensors,
        architecture=architecture,
        apply_b_dec_to_input=apply_b_dec,
        k=_k_of(cfg) if architecture == "topk" else None,
        normalize_activations=normalization,
    )


def _k_of(cfg: dict[str, object]) -> int:
    k = cfg.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UnsupportedSAEError(f"a topk SAE needs a whole k >= 1, got {k!r}")
    return k


def _read_config(path: Path) -> dict[str, object]:
    try:
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleNotFoundError(f"no SAELens checkpoint: {path} is missing") from None
    except ValueError as error:
        raise BundleCorruptError(f"{path} is not JSON: {error}") from error
    if not isinstance(cfg, dict):
        raise BundleCorruptError(f"{path} must hold a JSON object")
    return cfg


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BundleNotFoundError(f"no SAELens checkpoint: {path} is missing") from None
    except SafetensorError as error:
        raise BundleCorruptError(f"{path} is damaged: {error}") from error


def _check_options(cfg: dict[str, object], architecture: str) -> str:
    # Each of these changes the maths; ignoring one would edit the wrong latents.
    normalization = check_normalization(str(cfg.get("normalize_activations") or "none"))
    if cfg.get("rescale_acts_by_decoder_norm", False) and architecture != "topk":
        raise UnsupportedSAEError(
            "rescale_acts_by_decoder_norm is known for topk SAEs only, got "
            f"{architecture!r}; fold the norm into the weights first"
        )
    reshape = cfg.get("reshape_activations", "none")
    if reshape not in (None, "none"):
        raise UnsupportedSAEError(
            f"reshape_activations must be 'none', got {reshape!r}"
        )
    activation = cfg.get("activation_fn", "relu")
    if activation not in (None, "relu"):
        raise UnsupportedSAEError(f"activation_fn must be 'relu', got {activation!r}")
    return normalization
