# SPDX-License-Identifier: Apache-2.0
"""The JumpReLU sparse autoencoder; BatchTopK at inference is one too."""

from __future__ import annotations

import torch
from torch import Tensor


def latent_acts(hidden_pre: Tensor, threshold: Tensor) -> Tensor:
    """Return pre-activations above their threshold, zero elsewhere.

    Shapes: hidden_pre [..., d_sae], threshold [d_sae] -> [..., d_sae]
    Source: Rajamanoharan et al. 2024, arXiv:2407.14435
    """
    return torch.relu(hidden_pre) * (hidden_pre > threshold)
