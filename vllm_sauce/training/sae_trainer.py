# SPDX-License-Identifier: Apache-2.0
"""Train an SAE on activations held in memory, with SAELens' trainer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from vllm_sauce.errors import ConfigError
from vllm_sauce.sae import SAEWeights
from vllm_sauce.training.activation_statistics import (
    ActivationStatistics,
    geometric_median,
)
from vllm_sauce.training.sae_lens_training import TrainingRun
from vllm_sauce.training.sae_settings import SAETraining

__all__ = ["SAETraining", "geometric_median", "shuffled_batches", "train_sae"]


def shuffled_batches(
    activations: Tensor, batch_tokens: int, seed: int
) -> Iterator[Tensor]:
    """Yield batches of rows forever, reshuffled every epoch.

    Shapes: activations [num_tokens, d_model] -> [batch_tokens, d_model]
    """
    generator = torch.Generator().manual_seed(seed)
    if len(activations) < batch_tokens:
        raise ConfigError(
            f"{len(activations)} activations do not fill a batch of {batch_tokens}"
        )
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_tokens):
            if len(rows) == batch_tokens:
                yield activations[rows]


def train_sae(activations: Tensor, training: SAETraining) -> SAEWeights:
    """Train an SAE; its decoder rows have unit norm.

    Activations are scaled to mean squared norm d_model while training, and the scale
    is folded into the weights afterwards, so penalties mean the same at every site.

    Shapes: activations [num_tokens, d_model]
    Source: SAUCE (arXiv:2503.14530) for ReLU + L1, pre-bias and initial b_dec
    """
    batches = shuffled_batches(activations, training.batch_tokens, training.seed)
    run = TrainingRun(training, ActivationStatistics.of(activations))
    for batch in islice(batches, training.total_steps):
        run.step(batch)
    run.figures()
    run.fold()
    return run.weights()
