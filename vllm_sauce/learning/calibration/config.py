# SPDX-License-Identifier: Apache-2.0
"""What a calibration is told: what it tries, and what counts as best."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.concepts import check_site
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import EngineArgs, SitePaths, check_at_least
from vllm_sauce.scale.cluster import Resources

ROW_KINDS = ("others", "absence", "words", "saying")
"""See ``sae.weights.Row``."""


@Parameter(name="*", group="Search")
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """What is tried, on how many examples, and what counts as best."""

    k: Annotated[tuple[int, ...], Parameter(name="--edit-k")] = (4, 8, 16, 32, 64)
    """Number of latents that an edit may have; may be given again."""

    actions: Annotated[tuple[str, ...], Parameter(name="--action")] = (
        *("scale 0", "scale -0.5", "scale -1", "scale -2", "scale -4", "scale -8"),
        *("scale -16", "clamp 0.5", "clamp 1", "clamp 2"),
    )
    """"scale G": gamma. "clamp C": to -C times the largest activation seen with the
    concept. May be given again."""

    gates: Annotated[tuple[float, ...], Parameter(name="--gate")] = (0.0, 0.99, 0.999)
    """Share of the tokens without the concept that the edit leaves alone; may be given
    again."""

    row_shares: Annotated[tuple[float, ...], Parameter(name="--row-share")] = (
        *(0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
    )
    """Share of what a row reads that is taken away; may be given again."""

    row_gates: Annotated[tuple[float, ...], Parameter(name="--row-gate")] = (
        *(0.35, 0.5, 0.75),
    )
    """What a row must read to be taken away: 0 is the mean without the concept, 1 the
    mean with it. May be given again."""

    row_kinds: Annotated[
        tuple[str, ...], Parameter(name="--row-kind", choices=ROW_KINDS)
    ] = ()
    """Kind of rows that is tried, of concepts that have one; may be given again.
    Default: all."""

    rankings: Annotated[tuple[str, ...], Parameter(name="--ranking")] = ()
    """Score that latents may be ranked by, "file" for the selection's own; may be given
    again. Default: all of the selection."""

    retain_floor: float = 0.02
    """Share that IRA and CRA may lose each."""

    worst_floor: float = 0.35
    """Share of being named right that any single other concept may lose."""

    forget_floor: float = 0.8
    """UAg and UAd that are reached before anything is kept. What is below them on the
    scoring split is written as not forgotten; a server refuses it unless it is told
    otherwise."""

    positives: int = 48
    """Examples with a concept, at most."""

    negatives: int = 24
    """Examples without it, at most."""

    watched: int = 4
    """Examples of every other concept, at most."""

    screen: float = 0.25
    """Share of the questions that the search itself asks; it names no watched one."""

    finalists: int = 6
    """Settings that are asked all questions; twice as many are asked half of them."""

    soft: float = 0.5
    """Weight of probabilities in what the search maximises; the rest is right/wrong."""

    passes: int = 2
    """How often the search goes through its coordinates at most."""

    prune: bool = True
    """Drop latents that the chosen edit does not need."""

    answer_tokens: Annotated[int, Parameter(name="--asked-tokens")] = 8
    """Tokens of a written answer."""

    concepts_per_engine: int = 20
    """Concepts whose candidates are asked together; changes nothing but the time. A
    common setting is sought on up to 20."""

    seed: Annotated[int, Parameter(name="--search-seed")] = 0
    """Of the examples that are drawn, and of the concepts for a common setting."""

    def __post_init__(self) -> None:
        for name in ("retain_floor", "worst_floor", "forget_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, got {getattr(self, name)}")
        check_at_least(self, 0, "watched")
        if not 0 < self.screen <= 1 or not 0 <= self.soft <= 1:
            raise ConfigError("screen lies in (0, 1], soft in [0, 1]")
        if not all(0 < one <= 100 for one in self.row_shares):
            raise ConfigError(f"row_shares lie in (0, 100], got {self.row_shares}")
        if not all(0 <= one <= 100 for one in self.row_gates):
            raise ConfigError(f"row_gates lie in [0, 100], got {self.row_gates}")
        if min(self.positives, self.negatives, self.finalists, self.passes) < 1:
            raise ConfigError("positives, negatives, finalists, passes: at least 1")
        if self.concepts_per_engine < 1:
            raise ConfigError("concepts_per_engine must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return what changes the result; how many are asked together does not."""
        fields = asdict(self)
        del fields["concepts_per_engine"]
        return fields


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRequest:
    """What is calibrated, from what, and where it goes."""

    model: str
    """Folder of the model."""

    saes: SitePaths
    """A bundle's folder, or one that SAELens saved; once a site."""

    selections: Annotated[tuple[Path, ...], Parameter(name="--selection")]
    """What sauce select wrote; once a site."""

    concepts: Path
    """concepts.yaml."""

    out: Path
    """The bundle to write."""

    names: Annotated[tuple[str, ...], Parameter(name="--concept")] = ()
    """Only this concept; again for more. Default: all of the file."""

    config: CalibrationConfig = field(default_factory=CalibrationConfig)

    engine_args: EngineArgs = field(default_factory=dict)
    """For vllm.LLM, VALUE as JSON; may be given again."""

    resources: Resources | None = None
    """Ray actors that calibrate side by side; None does it in this process."""

    overwrite: Annotated[bool, Parameter(negative="")] = False
    """Replace the bundle that is there."""

    def __post_init__(self) -> None:
        for site in self.saes:
            check_site(site)
        if not self.saes or len(self.selections) != len(self.saes):
            raise ConfigError("give one SAE and one selection for each site")

    @property
    def folder(self) -> Path:
        """Where everything that was tried is kept."""
        return self.out.with_name(f"{self.out.name}.calibration")
