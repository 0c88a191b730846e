# SPDX-License-Identifier: Apache-2.0
"""The median that training starts from, and an SAE known by heart."""

import pytest
import torch

from vllm_sauce.activations.statistics import geometric_median
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality


def test_geometric_median_ignores_an_outlier():
    points = torch.tensor([[0.0], [0.1], [-0.1], [0.05], [1000.0]])
    assert float(geometric_median(points).abs()) < 0.2


def test_quality_of_an_sae_known_by_heart():
    """Latents read x0+, x1+; x1 is decoded, x0 is not; the third is dead."""
    sae = SAEWeights(
        W_enc=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        W_dec=torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        b_enc=torch.tensor([0.0, 0.0, -1.0]),
        b_dec=torch.zeros(2),
    )
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    quality = sae_quality(sae, x)
    # squared distance to the mean (0, 0.5): 1.25 + 1.25 + 2.25 + 0.25; error 1 + 1
    assert quality.explained_variance == pytest.approx(1 - 2 / 5)
    assert quality.l0 == pytest.approx(2 / 4)
    assert quality.dead_share == pytest.approx(1 / 3)
