# SPDX-License-Identifier: Apache-2.0
"""Folding of constants into the weights; what is computed stays the same."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vllm_sauce.sae.weights import SAEWeights, product


def fold_b_dec(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Return the encoder bias that makes subtracting ``b_dec`` unnecessary.

    Shapes: W_enc [d_model, d_sae], b_enc [d_sae], b_dec [d_model] -> [d_sae] float32
    """
    return b_enc.float() - product(b_dec.float(), W_enc)


def fold_gated(
    sae: SAEWeights, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor
) -> SAEWeights:
    """Return the JumpReLU SAE that a gated one is; ``sae.b_enc`` does not count.

    With pi = x W_enc, a latent is ``relu(pi e^r_mag + b_mag)`` where ``pi > -b_gate``,
    that is, where ``pi e^r_mag + b_mag > b_mag - b_gate e^r_mag``.

    Shapes: r_mag, b_gate, b_mag [d_sae]
    Source: Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on weight tying
    """
    factor = r_mag.float().exp()
    return replace(
        sae,
        W_enc=sae.W_enc.float() * factor,
        b_enc=b_mag.float(),
        threshold=b_mag.float() - b_gate.float() * factor,
        architecture="jumprelu",
    )


def fold_decoder_norm(sae: SAEWeights) -> SAEWeights:
    """Return the SAE with the decoder rows' norms moved to the encoder.

    A threshold stays: it is compared with what the norms have scaled.
    """
    norm = sae.W_dec.float().norm(dim=1)
    # A row of zeros says nothing whatever is done with it; 0 / 0 would be NaN.
    divisor = norm.where(norm > 0, 1.0)
    return replace(
        sae,
        W_enc=sae.W_enc.float() * norm,
        b_enc=sae.b_enc.float() * norm,
        W_dec=sae.W_dec.float() / divisor[:, None],
    )


def fold_input_scale(sae: SAEWeights, scale: float) -> SAEWeights:
    """Return the SAE that takes x where one took scale * x.

    What is decoded is divided by ``scale``; latents and thresholds stay as they were.

    Source: SAELens v6, ``SAE.fold_activation_norm_scaling_factor``
    """
    return replace(
        sae,
        W_enc=sae.W_enc.float() * scale,
        W_dec=sae.W_dec.float() / scale,
        b_dec=sae.b_dec.float() / scale,
    )
