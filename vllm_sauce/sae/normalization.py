# SPDX-License-Identifier: Apache-2.0
"""Normalisations of the SAE's input that depend on the token, as SAELens does them."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from vllm_sauce.errors import UnsupportedSAEError

EPS = 1e-5
NORMALIZATIONS: Final = ("none", "layer_norm", "constant_norm_rescale")
"""By the number that the op knows them by."""


def check_normalization(name: str) -> str:
    """Return ``name`` if inputs normalised so can be served.

    Raises: UnsupportedSAEError
    """
    if name not in NORMALIZATIONS:
        raise UnsupportedSAEError(
            f"normalize_activations must be one of {', '.join(NORMALIZATIONS)}, "
            f"got {name!r}; fold constant factors into the weights first"
        )
    return name


def normalize(x: Tensor, name: str) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Return the SAE's input, and the scale and mean that undo it.

    Shapes: x [..., d_model] float32 -> [..., d_model], [..., 1] or 1, [..., 1] or 0
    Source: SAELens v6, ``SAE._setup_activation_normalization``
    """
    if name == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        return (x - mean) / (std + EPS), std, mean
    if name == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / scale, scale, 0.0
    return x, 1.0, 0.0
