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
from vllm_sauce.sae.weights import SAEWeights

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"


def from_sae_lens(path: str | Path) -> SAEWeights:
    """Read a standard or jumprelu SAE that SAELens saved.

    Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
    Source: SAELens v6, ``SAE.save_model``
    """
    folder = Path(path)
    cfg = _read_config(folder / CONFIG_FILE)
    architecture = cfg.get("architecture")
    if not isinstance(architecture, str):
        raise UnsupportedSAEError(f"{folder / CONFIG_FILE} names no architecture")
    check_architecture(architecture)
    _check_options(cfg)
    apply_b_dec = cfg.get("apply_b_dec_to_input", True)
    if not isinstance(apply_b_dec, bool):
        raise UnsupportedSAEError(
            f"apply_b_dec_to_input must be true or false, got {apply_b_dec!r}"
        )
    tensors = _read_weights(folder / WEIGHTS_FILE)
    names = {"W_enc", "W_dec", "b_enc", "b_dec"}
    names |= {"threshold"} if architecture == "jumprelu" else set()
    if set(tensors) != names:
        raise UnsupportedSAEError(
            f"a {architecture} SAE has the tensors {sorted(names)}, "
            f"got {sorted(tensors)}"
        )
    return SAEWeights(
        **tensors, architecture=architecture, apply_b_dec_to_input=apply_b_dec
    )


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


def _check_options(cfg: dict[str, object]) -> None:
    # Each of these changes the maths; ignoring one would edit the wrong latents.
    normalize = cfg.get("normalize_activations", "none")
    if normalize not in (None, "none"):
        raise UnsupportedSAEError(
            f"normalize_activations must be 'none', got {normalize!r}; "
            "fold the norm into the weights first"
        )
    if cfg.get("rescale_acts_by_decoder_norm", False):
        raise UnsupportedSAEError(
            "rescale_acts_by_decoder_norm is not supported; "
            "fold the norm into the weights first"
        )
    reshape = cfg.get("reshape_activations", "none")
    if reshape not in (None, "none"):
        raise UnsupportedSAEError(
            f"reshape_activations must be 'none', got {reshape!r}"
        )
    activation = cfg.get("activation_fn", "relu")
    if activation not in (None, "relu"):
        raise UnsupportedSAEError(f"activation_fn must be 'relu', got {activation!r}")
