# SPDX-License-Identifier: Apache-2.0
"""Rows: latents that were fitted with labels, beside those that were trained.

A row reads ``z = max(w x + b, 0)`` and writes along u. It is served as any latent is,
by the op as it is: an SAE's last latents are its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.weights import Row, SAEWeights


def with_rows(
    sae: SAEWeights | None,
    read: Tensor,
    bias: Tensor,
    write: Tensor,
    rows: Sequence[Row],
) -> SAEWeights:
    """Return an SAE with rows behind its latents; ``None``: of rows alone.

    Shapes: read [d_model, num_rows], bias [num_rows], write [num_rows, d_model]
    Raises: UnsupportedSAEError if its latents depend on each other or on norms
    """
    if sae is None:
        return SAEWeights(
            W_enc=read,
            W_dec=write,
            b_enc=bias,
            b_dec=torch.zeros(len(read)),
            rows=tuple(rows),
        )
    if sae.rows:
        raise UnsupportedSAEError(f"this SAE has {len(sae.rows)} rows already")
    if sae.k is not None or sae.normalize_activations != "none":
        raise UnsupportedSAEError(
            "rows cannot stand beside the latents of an SAE that ranks them (topk) or "
            f"normalises its input, got {sae.architecture}, "
            f"{sae.normalize_activations}; fit rows without an SAE"
        )
    if sae.apply_b_dec_to_input:
        bias = bias + sae.b_dec.float() @ read
    threshold = sae.threshold
    if threshold is not None:
        # A gate is at least 0, and a row has no other.
        threshold = torch.cat([threshold, threshold.new_zeros(len(rows))])
    return replace(
        sae,
        W_enc=torch.cat([sae.W_enc.float(), read], 1),
        W_dec=torch.cat([sae.W_dec.float(), write]),
        b_enc=torch.cat([sae.b_enc.float(), bias]),
        threshold=threshold,
        rows=tuple(rows),
    )


def without_rows(sae: SAEWeights) -> SAEWeights:
    """Return the SAE as it was trained."""
    count = sae.d_sae - len(sae.rows)
    return replace(
        sae,
        W_enc=sae.W_enc[:, :count],
        W_dec=sae.W_dec[:count],
        b_enc=sae.b_enc[:count],
        threshold=None if sae.threshold is None else sae.threshold[:count],
        rows=(),
    )
