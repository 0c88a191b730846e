# SPDX-License-Identifier: Apache-2.0
"""What a score that asks the model is given, and what it adds to.

Such a score is a module of this folder with a function ``rank``: from a ``Ranking`` to
each concept's latents, best first; ``settings.MODEL_SCORES`` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vllm_sauce.concepts.scores import CausalScore
from vllm_sauce.concepts.statistics import GroupStatistics
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.selection.settings import SelectRequest
from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class Scored:
    """One concept's groups and scores."""

    concept: ConceptExamples
    pos: GroupStatistics
    neg: GroupStatistics
    scores: dict[str, Tensor]
    """By name; a score that asks the model adds its own. [d_sae] each"""
    causal: dict[int, CausalScore] = field(default_factory=dict)
    """By latent, where it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What is ranked, and what may be asked about."""

    request: SelectRequest
    model: str
    """Name or folder of the model to ask."""
    sae: SAEWeights
    file: ConceptFile
    scored: Sequence[Scored]
    progress: Progress


Rank = Callable[[Ranking], Mapping[str, tuple[int, ...]]]
"""Returns the latents that are kept of each concept, best first."""
