# SPDX-License-Identifier: Apache-2.0
"""What an inspection is told."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vllm_sauce.errors import ConfigError


@Parameter(name="*", group="How much is shown")
@dataclass(frozen=True, slots=True, kw_only=True)
class InspectSettings:
    """How much is looked at."""

    latents: int = 8
    """Latents of a concept that are shown; those that tell it best."""

    top: int = 9
    """Pictures in which each of them fires most."""

    probes: int = 6
    """Pictures of each concept that are asked about."""

    retained: Annotated[int, Parameter(parse=False)] = 16
    """Pictures without a concept that are asked about at every strength."""

    strengths: Annotated[tuple[float, ...], Parameter(parse=False)] = tuple(
        step / 4 for step in range(13)
    )
    """0, 0.25, ... 3."""

    def __post_init__(self) -> None:
        for name in ("latents", "top", "probes", "retained"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class InspectRequest:
    """Which bundle is looked at, on what, and where the page goes."""

    bundle: str
    """The bundle's folder, or its name on the hub."""

    _: KW_ONLY

    model: Path
    """The model's folder."""

    concepts: Path | None = None
    """A concepts.yaml."""

    pictures: Path | None = None
    """A folder of pictures with labels.jsonl."""

    names: Annotated[tuple[str, ...], Parameter(name="--concept")] = ()
    """Only this one; repeatable. Default: all."""

    out: Path = Path("report.html")
    """The page."""

    settings: InspectSettings = InspectSettings()

    split: str | None = None
    """Only this split of a concepts.yaml."""

    question: str | None = None
    """With --pictures: "Is there {a concept} in the picture?\""""

    naming: Annotated[tuple[str, ...], Parameter(metavar="[DOMAIN=]QUESTION")] = ()
    """With --pictures: a question whose answer is the concept's name; repeatable."""
