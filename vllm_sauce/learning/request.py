# SPDX-License-Identifier: Apache-2.0
"""What ``sauce learn`` is told: its own options, and those of its stages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.concepts import check_site, is_vision
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.harvest.settings import HarvestSettings, check_sites
from vllm_sauce.learning.rows.settings import RowSettings
from vllm_sauce.learning.selection.settings import SelectSettings
from vllm_sauce.learning.training.settings import SAETraining
from vllm_sauce.options import (
    EngineArgs,
    Sites,
    SiteSAEs,
    check_at_least,
    check_choice,
)
from vllm_sauce.scale.cluster import Resources

TOPK = "topk"
EDITS = ("both", "rows", "latents")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnRequest:
    """What is learned, of which model, and how."""

    model: str
    """Folder of the model."""

    sites: Sites
    """vision, `vision.<n>` or `decoder.<i>`; may be given again."""

    concepts: Path
    """concepts.yaml."""

    out: Path
    """The bundle to write."""

    saes: SiteSAEs = field(default_factory=dict)
    """A bundle, what SAELens saved, or a public SAE to import; the SAEs of the other
    sites are trained."""

    train_pictures: Path | None = None
    """Folder of more pictures to train on, or JSON lines with the columns image and
    prompt; else those of the concepts."""

    train_texts: Path | None = None
    """File of texts to train on instead, one a line."""

    fidelity_samples: int = 64
    """What the model's loss is with a trained SAE in its place is measured on at most
    so many; 0 measures nothing."""

    edits: Annotated[str, Parameter(choices=EDITS)] = "both"
    """What concepts may be forgotten by: rows, fitted with labels; latents of SAEs;
    or, for each, what calibration finds better."""

    latents: int = 64
    """Latents a concept that calibration may choose from, at each site."""

    report: bool = True
    """Draw a page at the end, as sauce inspect does."""

    engine_args: EngineArgs = field(default_factory=dict)
    """For vllm.LLM, VALUE as JSON; may be given again."""

    harvest: HarvestSettings = field(default_factory=HarvestSettings)
    rows: RowSettings = field(default_factory=RowSettings)
    training: SAETraining = field(default_factory=SAETraining)
    selection: SelectSettings = field(default_factory=SelectSettings)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    resources: Resources | None = None
    """Actors that harvest and calibrate."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "latents")
        check_choice(self, "edits", EDITS)
        if self.edits == "rows" and self.saes:
            raise ConfigError(
                "--edits rows needs no SAE; leave --sae away, or use both"
            )
        if self.edits == "both" and self.trained and self.training.architecture == TOPK:
            raise ConfigError(
                "rows cannot stand beside the latents of a topk SAE, which ranks them; "
                "take --edits latents, --edits rows, or another architecture"
            )
        check_sites(self.sites)
        if self.train_texts is not None and self.train_pictures is not None:
            raise ConfigError("give either --train-pictures or --train-texts")
        if self.train_texts is not None and any(map(is_vision, self.trained)):
            raise ConfigError(
                "the vision site sees no texts; give --train-pictures, or an SAE for it"
            )
        for site in self.saes:
            check_site(site)
        if stray := sorted(set(self.saes) - set(self.sites)):
            raise ConfigError(f"an SAE is given for {stray[0]}, which is not a --site")

    @property
    def folder(self) -> Path:
        """Where the stages leave what they made."""
        return self.out.with_name(f"{self.out.name}.learn")

    @property
    def trained(self) -> tuple[str, ...]:
        """Sites whose SAE is trained."""
        if self.edits == "rows":
            return ()
        return tuple(site for site in self.sites if site not in self.saes)

    def edited_path(self, site: str) -> Path:
        """Return where that is which a site's edits are chosen from."""
        if self.edits == "latents":
            return self.sae_path(site)
        return self.folder / f"rows-{site}"

    def sae_path(self, site: str) -> Path:
        """Return where a site's SAE is once its stage is done."""
        # Here: it brings pydantic, and the command's help reads this file.
        from vllm_sauce.bundle.served_sae import is_served_sae

        given = self.saes.get(site)
        if given is not None and is_served_sae(Path(given)):
            return Path(given)
        return self.folder / f"sae-{site}"

    def to_json(self) -> dict[str, Any]:
        """Return what changes the result, flat; where and how fast it runs does not."""
        own = (
            *("sites", "concepts", "out", "saes", "edits", "latents"),
            *("train_pictures", "train_texts"),
        )
        told = {name: getattr(self, name) for name in own}
        parts = {
            "harvest": self.harvest.to_json(),
            "rows": asdict(self.rows),
            "training": self.training.to_json(),
            "selection": asdict(self.selection),
            "calibration": self.calibration.to_json(),
        }
        for name, part in parts.items():
            told |= {f"{name}.{key}": value for key, value in part.items()}
        plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
        return plain
