# SPDX-License-Identifier: Apache-2.0
"""How an SAE is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_sauce.errors import ConfigError

TRAINED_ARCHITECTURES: Mapping[str, str] = {
    "standard": "ReLU and an L1 penalty, the paper's (Bricken et al. 2023)",
    "gated": "what fires and how much, apart (arXiv:2404.16014)",
    "jumprelu": "a threshold a latent, penalty around k (arXiv:2407.14435)",
    "topk": "k latents a token (arXiv:2406.04093)",
    "batchtopk": "k latents a token on average (arXiv:2412.06410)",
    "matryoshka": "BatchTopK, nested widths (arXiv:2503.17547)",
}
"""Those that can be trained."""
PENALISED = ("standard", "gated")
"""Those whose sparsity follows from an L1 penalty; the others are told k."""
_ABOVE_0 = ("d_sae", "batch_tokens", "learning_rate", "decoder_init_norm")
_NOT_BELOW_0 = tuple(f"{name}_coefficient" for name in ("l1", "l0", "aux", "pre_act"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SAETraining:
    """How one SAE is trained.

    Penalties are for activations scaled to mean squared norm d_model, so that they mean
    the same at every site.
    """

    d_sae: int
    """Number of latents."""

    architecture: str = "standard"
    """One of TRAINED_ARCHITECTURES."""

    l1_coefficient: float = 1.0
    """Weight of the L1 penalty; standard and gated."""

    k: float = 16.0
    """Latents a token keeps: exactly (topk), on average (batchtopk, matryoshka), or
    what the penalty pulls towards (jumprelu)."""

    l0_coefficient: float = 0.1
    """Weight of the penalty on the distance between L0 and k; jumprelu."""

    matryoshka_widths: tuple[int, ...] = ()
    """Latents of each nested level; () is an eighth, a quarter, a half, and all."""

    aux_coefficient: float = 1.0
    """Weight of the loss that revives dead latents; topk, batchtopk, matryoshka."""

    dead_steps: int | None = None
    """Steps without firing after which a latent is dead; None is a quarter of all
    steps, at most 1000."""

    pre_act_coefficient: float = 3e-3
    """Weight of the loss that pulls dead latents' pre-activations up; jumprelu."""

    revival_steps: int | None = None
    """Batches that latents dead at the end learn from, alone; standard. 0 leaves them
    dead, None is a tenth of all steps."""

    decoder_init_norm: float = 0.1
    """Norm of each row of the decoder at first; the encoder begins as its transpose."""

    training_tokens: int = 1_000_000
    batch_tokens: int = 1024
    learning_rate: float = 4e-4
    """Adam's; warms up over a tenth of the steps (at most 500), and falls to zero over
    the last third."""

    autocast: bool = False
    """Multiply in bfloat16."""

    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in TRAINED_ARCHITECTURES:
            raise ConfigError(
                f"architecture must be one of {', '.join(TRAINED_ARCHITECTURES)}, "
                f"got {self.architecture!r}"
            )
        self._check_sizes()
        if self.architecture not in PENALISED and not 0 < self.k <= self.d_sae:
            raise ConfigError(
                f"k must be above 0 and at most d_sae={self.d_sae}, got {self.k}"
            )
        if self.architecture == "topk" and self.k != int(self.k):
            raise ConfigError(f"topk keeps a whole number of latents, got k={self.k}")
        widths = self.matryoshka_widths
        if widths and (
            list(widths) != sorted(set(widths))
            or widths[0] < 1
            or widths[-1] != self.d_sae
        ):
            raise ConfigError(
                f"matryoshka_widths must rise to d_sae={self.d_sae}, got {widths}"
            )

    def _check_sizes(self) -> None:
        for name in _ABOVE_0:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in _NOT_BELOW_0:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} must not be below 0, got {getattr(self, name)}"
                )
        if self.revival_steps is not None and self.revival_steps < 0:
            raise ConfigError(
                f"revival_steps must not be below 0, got {self.revival_steps}"
            )
        if self.training_tokens < self.batch_tokens:
            raise ConfigError(
                f"training_tokens must be at least one batch of {self.batch_tokens}, "
                f"got {self.training_tokens}"
            )
        steps = self.total_steps
        if self.dead_steps is not None and not 0 < self.dead_steps < steps:
            raise ConfigError(
                f"dead_steps must be above 0 and below the {steps} steps of this "
                f"training, or no latent is ever called dead, got {self.dead_steps}"
            )

    @property
    def dead_window(self) -> int:
        """Steps without firing after which a latent is dead."""
        return self.dead_steps or min(1000, max(1, self.total_steps // 4))

    @property
    def steps_of_revival(self) -> int:
        """Batches that latents dead at the end learn from."""
        if self.architecture != "standard":
            return 0
        if self.revival_steps is None:
            return self.total_steps // 10
        return self.revival_steps

    @property
    def total_steps(self) -> int:
        """Number of batches."""
        return self.training_tokens // self.batch_tokens

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested levels of a matryoshka SAE."""
        if self.matryoshka_widths:
            return self.matryoshka_widths
        parts = (self.d_sae // 8, self.d_sae // 4, self.d_sae // 2, self.d_sae)
        return tuple(sorted({max(part, 1) for part in parts}))

    def to_json(self) -> dict[str, Any]:
        """Return what changes the result; where it is computed does not."""
        fields = asdict(self)
        fields.pop("device")
        fields["matryoshka_widths"] = list(self.matryoshka_widths)
        return fields
