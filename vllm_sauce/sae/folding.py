# SPDX-License-Identifier: Apache-2.0
"""Folding of constants into the encoder's bias."""

from __future__ import annotations

from torch import Tensor


def fold_b_dec(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Return the encoder bias that makes subtracting ``b_dec`` unnecessary.

    Shapes: W_enc [d_model, d_sae], b_enc [d_sae], b_dec [d_model] -> [d_sae] float32
    """
    return b_enc.float() - b_dec.float() @ W_enc.float()
