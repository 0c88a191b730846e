# SPDX-License-Identifier: Apache-2.0
"""SAELens' training SAEs and its trainer, driven batch by batch.

Source: SAELens 6.54, ``SAETrainer``; ``step``, ``save_trainer_state`` and
``load_trainer_state`` are its seams for other loops than its own ``fit``.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.statistics import ActivationStatistics
from vllm_sauce.errors import ConfigError, TrainingError
from vllm_sauce.learning.training.settings import SAETraining
from vllm_sauce.sae import SAEWeights, from_sae_lens


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One batch as the SAE in training saw it."""

    loss: float
    explained_variance: float
    l0: float
    dead_latents: int
    """See TrainingRun.dead_latents."""


class TrainingRun:
    """An SAE in training."""

    def __init__(self, training: SAETraining, statistics: ActivationStatistics) -> None:
        """Initialise the SAE around the activations' geometric median.

        Raises: ConfigError if there is no such device
        """
        from sae_lens.training.sae_trainer import SAETrainer

        self.training = training
        check_device(training.device)
        # Drawn on the CPU, so that a seed means the same on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.sae = _training_sae(len(statistics.median), training)
        self.sae.b_dec.data = (statistics.median * statistics.scale).contiguous()
        self.sae.to(training.device)
        self._trainer: Any = SAETrainer(
            cfg=_trainer_config(training), sae=self.sae, data_provider=iter(())
        )
        self._trainer.activation_scaler.scaling_factor = statistics.scale
        self._output: Any = None

    @property
    def steps_done(self) -> int:
        """Batches learned from."""
        return int(self._trainer.n_training_steps)

    @property
    def finished(self) -> bool:
        """Whether all batches were learned from."""
        return self.steps_done >= self.training.total_steps

    @property
    def dead_latents(self) -> int:
        """Latents that have not fired for ``SAETraining.dead_window`` steps."""
        return int(self._trainer.dead_neurons.sum())

    def step(self, batch: Tensor) -> None:
        """Learn from a batch.

        Shapes: batch [batch_tokens, d_model]
        """
        self._output = self._trainer.step(batch)
        self._trainer.n_training_steps += 1

    def figures(self) -> StepFigures:
        """Return the figures of the last batch.

        Raises: TrainingError if the training has diverged
        """
        log = self._trainer.build_train_step_log_dict(
            self._output, self._trainer.n_training_samples
        )
        loss = float(log["losses/overall_loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.steps_done}; lower the learning "
                f"rate, now {self.training.learning_rate}"
            )
        return StepFigures(
            loss=loss,
            explained_variance=float(log["metrics/explained_variance"]),
            l0=float(log["metrics/l0"]),
            dead_latents=self.dead_latents,
        )

    def save(self, folder: Path) -> None:
        """Write weights and the trainer's state as SAELens' checkpoints are."""
        self.sae.save_model(folder)
        self._trainer.save_trainer_state(folder)

    def load(self, folder: Path) -> None:
        """Go back to a checkpoint. Raises what SAELens and torch raise."""
        self._trainer.load_trainer_state(folder)
        self.sae.load_weights_from_checkpoint(folder)

    def fold(self) -> None:
        """Make it an SAE of raw activations with unit decoder rows; ends the training.

        What it decodes stays the same, its latents are in the activations' units.
        """
        scale = self._trainer.activation_scaler.scaling_factor
        self._trainer.set_final_sae_metadata()
        with torch.no_grad():
            # A row without length has no direction to keep; folding divides by it.
            self.sae.W_dec[self.sae.W_dec.norm(dim=1) < 1e-8] = 0.0
        self.sae.fold_activation_norm_scaling_factor(scale)
        self.sae.fold_W_dec_norm()
        self._trainer.activation_scaler.scaling_factor = None

    def write(self, folder: Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the folded SAE in SAELens' layout, what is known of it in cfg.json."""
        self.sae.to("cpu")
        for name, value in (metadata or {}).items():
            self.sae.cfg.metadata[name] = value
        self.sae.save_inference_model(folder)

    def weights(self) -> SAEWeights:
        """Return the folded SAE, on the CPU."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return from_sae_lens(folder)


def check_device(device: str) -> None:
    """Raise ConfigError if torch cannot compute on a device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no device {device!r} here: {reason}") from error


def _trainer_config(training: SAETraining) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    steps = training.total_steps
    return SAETrainerConfig(
        total_training_samples=steps * training.batch_tokens,
        train_batch_size_samples=training.batch_tokens,
        lr=training.learning_rate,
        # Must be given; a constant rate that then decays does not use it.
        lr_end=training.learning_rate,
        lr_warm_up_steps=min(500, steps // 10),
        lr_decay_steps=steps // 3,
        device=training.device,
        autocast=training.autocast,
        dead_feature_window=training.dead_window,
        feature_sampling_window=steps + 1,
        logger=LoggingConfig(log_to_wandb=False),
    )


def _training_sae(d_model: int, training: SAETraining) -> Any:
    from sae_lens.registry import get_sae_training_class

    name = training.architecture
    sae_class, config_class = get_sae_training_class(
        "matryoshka_batchtopk" if name == "matryoshka" else name
    )
    with warnings.catch_warnings():
        # One level only is a BatchTopK SAE; so small a one is meant to be.
        warnings.simplefilter("ignore")
        return sae_class(
            config_class(
                d_in=d_model,
                d_sae=training.d_sae,
                device="cpu",
                apply_b_dec_to_input=True,
                decoder_init_norm=training.decoder_init_norm,
                # The factor is ours, see ActivationStatistics.scale.
                normalize_activations="expected_average_only_in",
                **_own_options(training),
            )
        )


def _own_options(training: SAETraining) -> dict[str, Any]:
    warm_up = training.total_steps // 10
    if training.architecture in ("standard", "gated"):
        return {
            "l1_coefficient": training.l1_coefficient,
            "l1_warm_up_steps": warm_up,
        }
    if training.architecture == "jumprelu":
        return {
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": training.k,
            "l0_coefficient": training.l0_coefficient,
            "l0_warm_up_steps": warm_up,
            # Anthropic's setting (January 2025), but for the last's default: its 3e-6
            # revives no latent in a training of some hundred steps.
            "jumprelu_init_threshold": 0.1,
            "jumprelu_bandwidth": 2.0,
            "jumprelu_ste_to_input": True,
            "pre_act_loss_coefficient": training.pre_act_coefficient,
        }
    options: dict[str, Any] = {
        "k": int(training.k) if training.architecture == "topk" else training.k,
        "aux_loss_coefficient": training.aux_coefficient,
        "rescale_acts_by_decoder_norm": True,
    }
    if training.architecture != "topk":
        # The threshold at inference is a moving average that begins at 0; SAELens'
        # 0.01 would leave it too low after a short training.
        options["topk_threshold_lr"] = min(1.0, max(0.01, 10 / training.total_steps))
    if training.architecture == "matryoshka":
        options["matryoshka_widths"] = list(training.widths)
    return options
