# SPDX-License-Identifier: Apache-2.0
"""How an SAE is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.concepts import check_site
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import ROLE_NAMES, Roles, check_at_least, check_choice

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
ABLATIONS = ("mean", "zero")
BUFFER_MIB = 512
_ABOVE_0 = ("d_sae", "expansion", "batch_tokens", "learning_rate", "decoder_init_norm")
_NOT_BELOW_0 = tuple(f"{name}_coefficient" for name in ("l1", "l0", "aux", "pre_act"))


@Parameter(name="*", group="Training")
@dataclass(frozen=True, slots=True, kw_only=True)
class SAETraining:
    """How one SAE is trained.

    Penalties are for activations scaled to mean squared norm d_model, so that they mean
    the same at every site.
    """

    architecture: Annotated[str, Parameter(choices=tuple(TRAINED_ARCHITECTURES))] = (
        "batchtopk"
    )
    """Of the SAE; docs/train.md says which is for what."""

    d_sae: int | None = None
    """Number of latents; default: expansion times d_model."""

    expansion: int = 16
    """Latents as a multiple of d_model, where d_sae is not given."""

    k: float = 32
    """Latents a token keeps: exactly (topk), on average (batchtopk, matryoshka), or
    what the penalty pulls towards (jumprelu)."""

    l1_coefficient: Annotated[float, Parameter(name="--l1")] = 1.0
    """Weight of the L1 penalty; standard and gated."""

    l0_coefficient: Annotated[float, Parameter(name="--l0")] = 0.1
    """Weight of the penalty on the distance between L0 and k; jumprelu."""

    matryoshka_widths: Annotated[
        tuple[int, ...], Parameter(name="--matryoshka-width")
    ] = ()
    """Latents of a nested level; may be given again. Default: an eighth, a quarter, a
    half, and all."""

    training_tokens: Annotated[int, Parameter(name="--tokens")] = 2_560_000
    """Rows to learn from, epochs counted."""

    batch_tokens: Annotated[int, Parameter(name="--batch")] = 1024
    """Rows a step."""

    learning_rate: Annotated[float, Parameter(name="--lr")] = 4e-4
    """Adam's; warms up over a tenth of the steps (at most 500), and falls to zero over
    the last third."""

    aux_coefficient: Annotated[float, Parameter(name="--aux")] = 1.0
    """Weight of the loss that revives dead latents; topk, batchtopk, matryoshka."""

    pre_act_coefficient: Annotated[float, Parameter(name="--pre-act")] = 3e-3
    """Weight of the loss that pulls dead latents' pre-activations up; jumprelu."""

    dead_steps: int | None = None
    """Steps without firing after which a latent is dead. Default: a quarter of all
    steps, at most 1000."""

    decoder_init_norm: Annotated[float, Parameter(name="--decoder-norm")] = 0.1
    """Norm of each row of the decoder at first; the encoder begins as its transpose."""

    autocast: Annotated[bool, Parameter(negative="")] = False
    """Multiply in bfloat16."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    seed: int = 0
    """Of the weights at first and of the rows' order."""

    def __post_init__(self) -> None:
        check_choice(self, "architecture", TRAINED_ARCHITECTURES)
        self._check_sizes()
        if self.architecture not in PENALISED and self.k <= 0:
            raise ConfigError(f"k must be above 0, got {self.k}")
        if self.architecture == "topk" and self.k != int(self.k):
            raise ConfigError(f"topk keeps a whole number of latents, got k={self.k}")
        if self.d_sae is not None:
            self._check_widths(self.d_sae)

    def _check_widths(self, d_sae: int) -> None:
        if self.architecture not in PENALISED and self.k > d_sae:
            raise ConfigError(f"k must be at most d_sae={d_sae}, got {self.k}")
        widths = self.matryoshka_widths
        if widths and (
            list(widths) != sorted(set(widths)) or widths[0] < 1 or widths[-1] != d_sae
        ):
            raise ConfigError(
                f"matryoshka_widths must rise to d_sae={d_sae}, got {widths}"
            )

    def _check_sizes(self) -> None:
        for name in _ABOVE_0:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}")
        for name in _NOT_BELOW_0:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} must not be below 0, got {value}")
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
    def total_steps(self) -> int:
        """Number of batches."""
        return self.training_tokens // self.batch_tokens

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested levels of a matryoshka SAE."""
        if self.matryoshka_widths:
            return self.matryoshka_widths
        assert self.d_sae is not None, "for_width() comes first"
        parts = (self.d_sae // 8, self.d_sae // 4, self.d_sae // 2, self.d_sae)
        return tuple(sorted({max(part, 1) for part in parts}))

    def for_width(self, d_model: int) -> SAETraining:
        """Return the training of an SAE for a site, with its number of latents."""
        if self.d_sae is not None:
            return self
        return replace(self, d_sae=self.expansion * d_model)

    def to_json(self) -> dict[str, Any]:
        """Return what changes the result; where it is computed does not."""
        fields = asdict(self)
        # What d_sae was made of, too, says nothing of its own.
        del fields["device"], fields["expansion"]
        fields["matryoshka_widths"] = list(self.matryoshka_widths)
        return fields


@Parameter(name="*", group="Measuring")
@dataclass(frozen=True, slots=True, kw_only=True)
class FidelitySettings:
    """How the loss recovered in the model is measured."""

    model: str | None = None
    """Folder or name of the model to measure in; default: the harvest's own."""

    pictures: tuple[Path, ...] = ()
    """Folder in which the samples' pictures are looked for; may be given again."""

    samples: Annotated[int, Parameter(name="--fidelity-samples")] = 64
    """At most so many; 0 measures nothing."""

    answer_tokens: int = 16
    """Tokens of an answer that are measured."""

    ablation: Annotated[str, Parameter(choices=ABLATIONS)] = "mean"
    """What stands for a site that is gone: its mean activation, or zero."""

    def __post_init__(self) -> None:
        check_choice(self, "ablation", ABLATIONS)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class HarvestTraining:
    """What is trained on what, and where it goes."""

    harvest: Path
    """Folder that sauce harvest wrote."""

    _: KW_ONLY

    site: str
    """vision, `vision.<n>` or `decoder.<i>`."""

    out: Path
    """A new folder for the SAE."""

    training: SAETraining = field(default_factory=SAETraining)
    fidelity: FidelitySettings = field(default_factory=FidelitySettings)

    roles: Roles = ROLE_NAMES
    """Kind of tokens that is trained on; may be given again."""

    keep_first: Annotated[bool, Parameter(negative="")] = False
    """Also train on what all prompts of a decoder begin with: the sink, a template."""

    held_out: float = 0.05
    """Share of the samples that is measured on and not trained on."""

    buffer_mib: float = BUFFER_MIB
    """Memory for shuffling."""

    checkpoint_steps: int = 1000
    """Steps between checkpoints."""

    resume: Annotated[bool, Parameter(negative="")] = False
    """Go on from the last checkpoint, if any."""

    verify: bool = True
    """Compare every shard with its hash first."""

    def __post_init__(self) -> None:
        check_site(self.site)
        check_at_least(self, 1, "checkpoint_steps")
