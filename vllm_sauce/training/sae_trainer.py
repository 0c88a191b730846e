# SPDX-License-Identifier: Apache-2.0
"""Train an SAE on activations held in memory, with SAELens' trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import ConfigError
from vllm_sauce.sae import SAEWeights, from_sae_lens


@dataclass(frozen=True, slots=True, kw_only=True)
class SAETraining:
    """How one SAE is trained."""

    d_sae: int
    """Number of latents."""

    architecture: str = "standard"
    """ "standard" (ReLU + L1, the paper's) or "batchtopk" (saved as jumprelu)."""

    l1_coefficient: float = 1.0
    """Weight of the L1 penalty on activations scaled to mean squared norm d_model."""

    k: float = 16.0
    """Latents a token keeps on average; BatchTopK only."""

    training_tokens: int = 1_000_000
    batch_tokens: int = 1024
    learning_rate: float = 4e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ("standard", "batchtopk"):
            raise ConfigError(
                f"architecture is 'standard' or 'batchtopk', got {self.architecture!r}"
            )
        if self.training_tokens < self.batch_tokens:
            raise ConfigError("training_tokens must be at least one batch")


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


def geometric_median(points: Tensor, iterations: int = 100) -> Tensor:
    """Return the point of least summed distance to all, by Weiszfeld's iteration.

    Shapes: points [num_points, d_model] -> [d_model]
    """
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-6)
        moved = (weights[:, None] * points).sum(0) / weights.sum()
        if (moved - median).norm() < 1e-5 * moved.norm().clamp_min(1e-6):
            return moved
        median = moved
    return median


def train_sae(activations: Tensor, training: SAETraining) -> SAEWeights:
    """Train an SAE; its decoder rows have unit norm.

    Activations are scaled to mean squared norm d_model while training, and the scale
    is folded into the weights afterwards, so penalties mean the same at every site.

    Shapes: activations [num_tokens, d_model]
    Source: SAUCE (arXiv:2503.14530) for ReLU + L1, pre-bias and initial b_dec
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(training.seed)
    norm = activations.pow(2).sum(1).mean().sqrt()
    scale = float(activations.shape[1] ** 0.5 / norm)
    batches = (
        batch * scale
        for batch in shuffled_batches(activations, training.batch_tokens, training.seed)
    )
    sae = _training_sae(activations.shape[1], training)
    sample = activations[:: max(1, len(activations) // 4096)]
    sae.b_dec.data = geometric_median(sample) * scale
    total_steps = training.training_tokens // training.batch_tokens
    config = SAETrainerConfig(
        total_training_samples=total_steps * training.batch_tokens,
        train_batch_size_samples=training.batch_tokens,
        lr=training.learning_rate,
        lr_end=training.learning_rate / 10,
        lr_warm_up_steps=min(500, total_steps // 10),
        lr_decay_steps=total_steps // 3,
        device="cpu",
        dead_feature_window=min(1000, total_steps // 4),
        feature_sampling_window=total_steps + 1,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=config, sae=sae, data_provider=batches, evaluator=None).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return _unscaled(from_sae_lens(folder), scale)


def _training_sae(d_model: int, training: SAETraining) -> Any:
    from sae_lens.saes.batchtopk_sae import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.standard_sae import (
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )

    shape = {"d_in": d_model, "d_sae": training.d_sae, "device": "cpu"}
    if training.architecture == "standard":
        warm_up = training.training_tokens // training.batch_tokens // 10
        return StandardTrainingSAE(
            StandardTrainingSAEConfig(
                **shape,
                l1_coefficient=training.l1_coefficient,
                l1_warm_up_steps=warm_up,
                apply_b_dec_to_input=True,
            )
        )
    return BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            **shape,
            k=training.k,
            apply_b_dec_to_input=True,
            rescale_acts_by_decoder_norm=False,
        )
    )


def _unscaled(sae: SAEWeights, scale: float) -> SAEWeights:
    """Return the SAE for raw activations, with unit-norm decoder rows.

    Both changes move factors from one tensor to another; what it decodes is the same.
    """
    norm = sae.W_dec.detach().norm(dim=1).clamp_min(1e-8)
    threshold = None if sae.threshold is None else sae.threshold.detach() * norm / scale
    return SAEWeights(
        W_enc=sae.W_enc.detach() * norm,
        W_dec=(sae.W_dec.detach() / norm[:, None]).contiguous(),
        b_enc=sae.b_enc.detach() * norm / scale,
        b_dec=sae.b_dec.detach() / scale,
        threshold=threshold,
        architecture=sae.architecture,
        apply_b_dec_to_input=sae.apply_b_dec_to_input,
    )
