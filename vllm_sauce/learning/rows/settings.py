# SPDX-License-Identifier: Apache-2.0
"""What a fit of rows is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vllm_sauce.concepts import check_site
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import ROLE_NAMES, Roles, check_roles

DIFFERENCE, LEACE, RANDOM = BASELINES = ("difference", "leace", "random")
"""Simple edits to compare with; ``baselines`` says what they are."""


@Parameter(name="*", group="Rows")
@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How rows are fitted."""

    shrinkages: Annotated[tuple[float, ...], Parameter(name="--shrinkage")] = (
        *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    )
    """Share of the covariance's diagonal alone; the best on held-out samples is taken,
    for all rows of a site. May be given again."""

    words: bool = True
    """At decoder sites, of samples without a picture: also rows of the tokens of a
    concept's words, and of those after which the model wrote one."""

    few: int = 30
    """Samples with a concept below which it is warned that its row is a guess."""

    def __post_init__(self) -> None:
        if not self.shrinkages or not all(0 < one <= 1 for one in self.shrinkages):
            raise ConfigError(
                f"shrinkages lie in (0, 1], at least one; got {self.shrinkages}"
            )


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """What rows are fitted on, and where they go."""

    site: str
    """vision, `vision.<n>` or `decoder.<i>`."""

    harvest: Path
    """Folder that sauce harvest wrote."""

    concepts: Path
    """concepts.yaml, as it was harvested."""

    out: Path
    """The folder to write: the SAE with its rows, ready for sauce select."""

    sae: Path | None = None
    """A bundle's folder, or one that SAELens saved, whose latents the rows stand
    beside; without one there are rows alone."""

    baseline: Annotated[str | None, Parameter(choices=BASELINES)] = None
    """Write a simple edit of each concept instead, to be served or measured beside
    others as it is: difference takes away the difference of means, leace what any
    linear read tells the concept by, random a direction that is drawn."""

    split: str = "selection"
    """Examples that are used."""

    roles: Roles = ROLE_NAMES
    """Kind of tokens that counts; may be given again."""

    fit: RowSettings = field(default_factory=RowSettings)

    overwrite: Annotated[bool, Parameter(negative="")] = False
    """Replace the folder that is there."""

    def __post_init__(self) -> None:
        check_site(self.site)
        check_roles(self.roles)
        if self.baseline is not None and self.sae:
            raise ConfigError("a baseline stands alone: leave out sae")
