# SPDX-License-Identifier: Apache-2.0
"""Scores that find a concept's latents from mean activations."""

from __future__ import annotations

from torch import Tensor

from vllm_sauce.errors import ConfigError


def share_difference(mu_pos: Tensor, mu_neg: Tensor, delta: float = 1e-8) -> Tensor:
    """Return S(i): how much larger a latent's share is with the concept than without.

    Shapes: mu_pos, mu_neg [d_sae], mean latent activations -> [d_sae] float32
    Source: SAUCE (arXiv:2503.14530), selection score
    """
    if mu_pos.ndim != 1 or mu_pos.shape != mu_neg.shape:
        raise ConfigError(
            f"mu_pos and mu_neg must both be [d_sae], got {tuple(mu_pos.shape)} "
            f"and {tuple(mu_neg.shape)}"
        )
    if not delta > 0:
        raise ConfigError(f"delta must be positive, got {delta}")
    pos, neg = mu_pos.float(), mu_neg.float()
    return pos / (pos.sum() + delta) - neg / (neg.sum() + delta)
