# SPDX-License-Identifier: Apache-2.0
"""How well an SAE explains activations, and how sparsely."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class SAEQuality:
    """Figures of one SAE on activations it was not trained on."""

    explained_variance: float
    """1 - squared error / squared distance to the mean activation."""

    l0: float
    """Mean number of active latents a token."""

    dead_share: float
    """Share of latents active on no token."""

    def to_json(self) -> dict[str, float]:
        """Return the figures rounded to four digits."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@torch.inference_mode()
def sae_quality(sae: SAEWeights, activations: Tensor) -> SAEQuality:
    """Measure an SAE, on the device where it is.

    Shapes: activations [num_tokens, d_model]
    """
    device = sae.W_enc.device
    mean = activations.mean(0).to(device)
    error = total = active = 0.0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    # At most 256 MiB of latents at a time.
    for rows in activations.split(min(8192, max(1, 2**26 // sae.d_sae))):
        x = rows.to(device)
        latent_acts = sae.encode(x)
        error += float((x - sae.decode(latent_acts, x)).pow(2).sum())
        total += float((x - mean).pow(2).sum())
        active += float((latent_acts > 0).sum())
        fired |= (latent_acts > 0).any(0)
    return SAEQuality(
        explained_variance=1 - error / max(total, 1e-12),
        l0=active / len(activations),
        dead_share=1 - float(fired.float().mean()),
    )
