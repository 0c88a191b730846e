# SPDX-License-Identifier: Apache-2.0
"""What an import is told."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from vllm_sauce.concepts import check_site, is_vision
from vllm_sauce.errors import ConfigError

MIN_EXPLAINED_VARIANCE: Final = 0.3
"""What an SAE must explain. The mean activation explains 0; sauce-tiny's SAEs explain
0.9 where they belong, less than nothing read wrongly (docs/import.md has the figures).
Inputs of another kind than it was trained on cost the most: hence no higher."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What is imported, for which model, and how it is checked."""

    source: str
    """A file, a folder, or org/name[@revision] on the hub."""

    _: KW_ONLY

    model: str
    """The model's folder, or org/name[@revision] on the hub."""

    site: str
    """vision, `vision.<n>` or `decoder.<i>`."""

    out: Path
    """The bundle to write."""

    format: str | None = None
    """Do not look, it is this format: see docs/import.md."""

    subfolder: str | None = None
    """Folder or file inside the source."""

    concepts: Path | None = None
    """JSON file with the catalogue; without one it is empty."""

    activations: Path | None = None
    """Safetensors file to check on; the model is not run."""

    pictures: Path | None = None
    """Folder of pictures that the model is shown, to check on."""

    texts: Path | None = None
    """File of texts that the model reads, one a line, to check on."""

    k: int | None = None
    """Latents a token keeps, where no file says it."""

    dict_class: str | None = None
    """dictionary_learning's class, where no file says it."""

    factor_folded: Annotated[bool, Parameter(negative="")] = False
    """SAELens' `expected_average_only_in` is in the weights already, as in SAE-V's and
    in any `final_*` folder of SAELens 3."""

    min_explained_variance: float = MIN_EXPLAINED_VARIANCE
    """Share of the variance it must explain."""

    compare: bool = True
    """Refuse it if another reading explains clearly more."""

    overwrite: Annotated[bool, Parameter(negative="")] = False
    """Replace the bundle that is there."""

    def __post_init__(self) -> None:
        check_site(self.site)
        if self.activations and (self.pictures or self.texts):
            raise ConfigError("give either --activations or --pictures and --texts")
        if is_vision(self.site) and self.texts:
            raise ConfigError("the vision site sees no texts; give --pictures alone")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"--k must be at least 1, got {self.k}")
        if not 0 <= self.min_explained_variance <= 1:
            raise ConfigError(
                "--min-explained-variance is a share from 0 to 1, got "
                f"{self.min_explained_variance}"
            )
