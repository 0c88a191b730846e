# SPDX-License-Identifier: Apache-2.0
"""Folding of constants into the weights; what is computed stays the same."""

from __future__ import annotations

from torch import Tensor


def fold_b_dec(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Return the encoder bias that makes subtracting ``b_dec`` unnecessary.

    Shapes: W_enc [d_model, d_sae], b_enc [d_sae], b_dec [d_model] -> [d_sae] float32
    """
    return b_enc.float() - b_dec.float() @ W_enc.float()


def fold_gated(
    W_enc: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_enc, b_enc and threshold of the JumpReLU SAE that a gated one is.

    With pi = x W_enc, a latent is ``relu(pi e^r_mag + b_mag)`` where ``pi > -b_gate``,
    that is, where ``pi e^r_mag + b_mag > b_mag - b_gate e^r_mag``.

    Shapes: W_enc [d_model, d_sae], the rest [d_sae]
    Source: Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on weight tying
    """
    factor = r_mag.float().exp()
    threshold = b_mag.float() - b_gate.float() * factor
    return W_enc.float() * factor, b_mag.float(), threshold


def fold_decoder_norm(
    W_enc: Tensor, b_enc: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_enc, b_enc and W_dec with the decoder rows' norms moved to the encoder.

    Shapes: W_enc [d_model, d_sae], b_enc [d_sae], W_dec [d_sae, d_model]
    """
    norm = W_dec.float().norm(dim=1)
    # A row of zeros says nothing whatever is done with it; 0 / 0 would be NaN.
    divisor = norm.where(norm > 0, 1.0)
    return W_enc.float() * norm, b_enc.float() * norm, W_dec.float() / divisor[:, None]


def fold_input_scale(
    W_enc: Tensor, W_dec: Tensor, b_dec: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_enc, W_dec and b_dec of the SAE that takes x where one took scale * x.

    What is decoded is divided by ``scale``; latents and thresholds stay as they were.

    Shapes: W_enc [d_model, d_sae], W_dec [d_sae, d_model], b_dec [d_model]
    Source: SAELens v6, ``SAE.fold_activation_norm_scaling_factor``
    """
    return W_enc.float() * scale, W_dec.float() / scale, b_dec.float() / scale
