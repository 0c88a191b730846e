# SPDX-License-Identifier: Apache-2.0
"""The TopK sparse autoencoder: of all latents, a token keeps its k largest."""

from __future__ import annotations

import torch
from torch import Tensor


def latent_acts(hidden_pre: Tensor, k: int) -> Tensor:
    """Return the k largest pre-activations where they are positive, zero elsewhere.

    Shapes: hidden_pre [..., d_sae] -> [..., d_sae]
    Source: Gao et al. 2024, arXiv:2406.04093
    """
    values, indices = torch.topk(hidden_pre, min(k, hidden_pre.shape[-1]), dim=-1)
    return torch.zeros_like(hidden_pre).scatter(-1, indices, values.relu())
