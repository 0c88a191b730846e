# SPDX-License-Identifier: Apache-2.0
"""From a foreign checkpoint's tensors to SAEWeights: orientation, types, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from vllm_sauce.errors import BundleCorruptError, UnsupportedSAEError
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.weights import SAEWeights, all_finite

_KEPT: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a user says where the files do not."""

    k: int | None = None
    """Latents a token keeps, for TopK checkpoints that do not store it."""

    dict_class: str | None = None
    """Class of dictionary_learning, for checkpoints that two classes save alike."""

    name: str = ""
    """What the user called the source; some names carry k."""

    factor_folded: bool = False
    """SAELens' factor of the input is in the weights, whatever its file says."""


Loaded = tuple[SAEWeights, tuple[str, ...]]
"""An SAE equal to the foreign one, and in words what was moved into its weights."""


def oriented(
    name: str, matrix: Tensor, shape: tuple[int, int], *, stored: bool
) -> Tensor:
    """Return a matrix in the wanted shape; ``stored`` says the format transposes it.

    The shape decides; what the format says counts only where the matrix is square.

    Raises: UnsupportedSAEError
    """
    found = tuple(matrix.shape)
    if shape[0] == shape[1] == found[0]:
        return matrix.T if stored else matrix
    if found == shape:
        return matrix
    if found == shape[::-1]:
        return matrix.T
    raise UnsupportedSAEError(
        f"{name} must be {list(shape)} or transposed (d_model and d_sae as the biases "
        f"have them), got {list(found)}"
    )


def assemble(
    tensors: Mapping[str, Tensor],
    *,
    stored: bool,
    architecture: str,
    threshold: Tensor | None = None,
    k: int | None = None,
    apply_b_dec_to_input: bool = True,
    normalize_activations: str = "none",
) -> SAEWeights:
    """Return the SAE of tensors W_enc, W_dec, b_enc and b_dec.

    ``stored`` says that the format keeps both matrices transposed. A threshold of one
    number holds for every latent.

    Raises: UnsupportedSAEError
    """
    for name in ("b_enc", "b_dec"):
        if tensors[name].ndim != 1:
            raise UnsupportedSAEError(
                f"{name} must have one dimension, got {list(tensors[name].shape)}"
            )
    d_sae, d_model = len(tensors["b_enc"]), len(tensors["b_dec"])
    if k is not None and k > d_sae:
        raise UnsupportedSAEError(f"k must be in 1..d_sae={d_sae}, got {k}")
    if threshold is not None and threshold.numel() == 1:
        threshold = threshold.reshape(1).expand(d_sae)
    sae = SAEWeights(
        W_enc=oriented("W_enc", tensors["W_enc"], (d_model, d_sae), stored=stored),
        W_dec=oriented("W_dec", tensors["W_dec"], (d_sae, d_model), stored=stored),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=threshold,
        architecture=architecture,
        k=k,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations=normalize_activations,
    )
    return plain(sae)


def whole_k(value: object, source: str) -> int:
    """Return k if it is a whole number of latents. Raises: UnsupportedSAEError"""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedSAEError(
            f"{source} must say k, a whole number from 1, got {value!r}; "
            "if you know it, say it with --k"
        )
    return value


def positive(value: object, source: str) -> float:
    """Return a finite number above 0. Raises: UnsupportedSAEError"""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise UnsupportedSAEError(f"{source} must be a number above 0, got {value!r}")
    return float(value)


def check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse what has no numbers, NaN and infinities before anything is computed.

    Raises: BundleCorruptError, UnsupportedSAEError
    """
    for name, tensor in checkpoint.tensors.items():
        if lack := _lack(tensor):
            raise UnsupportedSAEError(
                f"{checkpoint.path}: {name} must be a dense tensor whose every number "
                f"is in the file, got {lack}"
            )
        if tensor.is_floating_point() and not all_finite(_as_kept(tensor)):
            raise BundleCorruptError(
                f"{checkpoint.path}: {name} must hold finite numbers, got NaN or "
                "infinity"
            )


def plain(weights: SAEWeights) -> SAEWeights:
    """Return the same SAE in types that a bundle holds."""
    # A view of a bigger storage would drag it in.
    whole = torch.contiguous_format
    tensors: dict[str, Any] = {
        name: _as_kept(x).detach().clone(memory_format=whole)
        for name, x in weights.tensors().items()
    }
    return replace(weights, **tensors)


def _as_kept(tensor: Tensor) -> Tensor:
    # Bundles hold F32, F16 and BF16; torch computes next to nothing in 8 bits.
    other = tensor.is_floating_point() and tensor.dtype not in _KEPT
    return tensor.float() if other else tensor


def _lack(tensor: Tensor) -> str | None:
    """Return what keeps a tensor from being plain numbers, None if it is."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "a nested one" if tensor.is_nested else f"{tensor.layout}"
    if tensor.is_quantized or tensor.is_meta:
        return "a quantised one" if tensor.is_quantized else "one without numbers"
    if not tensor.numel():
        return f"the empty {list(tensor.shape)}"
    # A pickle of a few bytes can hold a view of one number that claims terabytes.
    kept = tensor.untyped_storage().nbytes() // tensor.element_size()
    if kept < tensor.numel():
        return f"{kept} numbers for the shape {list(tensor.shape)}"
    return None
