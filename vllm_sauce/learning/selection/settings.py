# SPDX-License-Identifier: Apache-2.0
"""What a selection is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vllm_sauce.concepts import check_site
from vllm_sauce.concepts.scores import SCORES
from vllm_sauce.options import (
    ROLE_NAMES,
    EngineArgs,
    Roles,
    check_at_least,
    check_choice,
    check_roles,
)

CAUSAL, ATTRIBUTION = "causal", "attribution"
MODEL_SCORES = (CAUSAL, ATTRIBUTION)
"""Scores that ask the model: modules of this folder, whose ``rank`` does."""
SCORE_NAMES = (*SCORES, *MODEL_SCORES)


@Parameter(name="*", group="Selection")
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectSettings:
    """How latents are ranked."""

    score: Annotated[str, Parameter(choices=SCORE_NAMES)] = "share"
    """What they are ranked by."""

    causal_candidates: int = 64
    """causal: latents of the largest S(i) that are tried one by one."""

    causal_examples: int = 8
    """causal: examples with the concept, and again without it, that are asked about."""

    attribution_examples: int = 16
    """attribution: examples with each concept that are asked about."""

    def __post_init__(self) -> None:
        check_choice(self, "score", SCORE_NAMES)
        counts = ("causal_candidates", "causal_examples", "attribution_examples")
        check_at_least(self, 1, *counts)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRequest(SelectSettings):
    """What is ranked, on which activations, by which score."""

    sae: Path
    """A bundle's folder, or one that SAELens saved."""

    site: str
    """vision, `vision.<n>` or `decoder.<i>`."""

    harvest: Path
    """Folder that sauce harvest wrote."""

    concepts: Path
    """concepts.yaml, as it was harvested."""

    out: Path = Path("selection.json")
    """Where the latents go."""

    k: int = 16
    """Latents kept for each concept."""

    split: str = "selection"
    """Examples that are used."""

    roles: Roles = ROLE_NAMES
    """Kind of tokens that counts; may be given again."""

    model: str | None = None
    """Where causal and attribution ask; default: the model that was harvested."""

    engine_args: EngineArgs = field(default_factory=dict)
    """causal: for vllm.LLM, VALUE as JSON; may be given again."""

    def __post_init__(self) -> None:
        # With slots, super() without arguments would look for another class.
        SelectSettings.__post_init__(self)
        check_site(self.site)
        check_at_least(self, 1, "k")
        check_roles(self.roles)
