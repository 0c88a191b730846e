# SPDX-License-Identifier: Apache-2.0
"""The ReLU sparse autoencoder of SAUCE: a latent is active where it is positive."""

from __future__ import annotations

import torch
from torch import Tensor


def latent_acts(hidden_pre: Tensor) -> Tensor:
    """Return the activations of pre-activations.

    Shapes: hidden_pre [..., d_sae] -> [..., d_sae]
    """
    return torch.relu(hidden_pre)
