# SPDX-License-Identifier: Apache-2.0
"""``sauce select``: from a harvest and concepts.yaml to each concept's latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts.scores import SCORES, Score, crisp, ranked
from vllm_sauce.concepts.statistics import LatentStatistics
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.selection.latent_statistics import (
    concept_statistics,
    quiet_levels,
    sample_groups,
)
from vllm_sauce.learning.selection.ranking import ModelScore, Ranking, Scored
from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    Causal,
    RankedLatent,
    SelectedConcept,
    SelectionFile,
    level_name,
)
from vllm_sauce.learning.selection.settings import MODEL_SCORES, SelectRequest


def select(
    request: SelectRequest, progress: Progress = lambda done, total: None
) -> SelectionFile:
    """Rank the latents of every concept.

    Raises: ConfigError, ActivationsError, BundleError
    """
    store = ActivationStore.open(request.harvest, request.site)
    sae = read_sae(request.sae, request.site, store.harvest.fingerprint)
    file = ConceptFile.read(request.concepts)
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, request.split, request.site)
    roles = parse_roles(request.roles)
    counted = concept_statistics(sae, store, groups, roles=roles, progress=progress)
    scored = _scored(request, concepts, counted)
    if request.score in MODEL_SCORES:
        score: ModelScore = import_module(f"{__package__}.{request.score}")
        ranking = Ranking(
            request=request,
            model=request.model or store.harvest.model,
            sae=sae,
            file=file,
            scored=scored,
            progress=progress,
        )
        latents = score.rank(ranking)
        chosen = [latents[one.concept.name] for one in scored]
    else:
        chosen = [
            ranked(one.scores[request.score], one.pos, request.k) for one in scored
        ]
    levels = quiet_levels(sae, store, groups, chosen, QUIET_LEVELS, roles=roles)
    return SelectionFile(
        fingerprint=store.harvest.fingerprint,
        site=request.site,
        d_sae=sae.d_sae,
        split=request.split,
        score=request.score,
        k=request.k,
        roles=list(request.roles),
        concepts={
            one.concept.name: _selected(one, latents, quiet)
            for one, latents, quiet in zip(scored, chosen, levels, strict=True)
        },
    )


def _scored(
    request: SelectRequest,
    concepts: Sequence[ConceptExamples],
    counted: LatentStatistics,
) -> list[Scored]:
    """Return each concept's groups with the scores that need statistics alone."""
    ways: dict[str, Score] = {**SCORES, "crisp": partial(crisp, k=request.k)}
    scored = []
    for number, concept in enumerate(concepts):
        pos, neg = counted.group(2 * number), counted.group(2 * number + 1)
        scores = {name: score(pos, neg) for name, score in ways.items()}
        scored.append(Scored(concept, pos, neg, scores))
    return scored


def _selected(one: Scored, chosen: Sequence[int], quiet: Tensor) -> SelectedConcept:
    """Shapes: quiet [num_shares, num_latents]"""
    return SelectedConcept(
        domain=one.concept.domain,
        num_samples=(one.pos.num_samples, one.neg.num_samples),
        latents=[
            _latent(one, latent, levels)
            for latent, levels in zip(chosen, quiet.T.tolist(), strict=True)
        ],
    )


def _latent(one: Scored, latent: int, levels: Sequence[float]) -> RankedLatent:
    def pair(name: str) -> tuple[float, float]:
        with_it, without = (getattr(group, name) for group in (one.pos, one.neg))
        return float(with_it[latent]), float(without[latent])

    values = {name: float(scores[latent]) for name, scores in one.scores.items()}
    causal = one.causal.get(latent)
    return RankedLatent(
        latent=latent,
        scores={
            n: value if math.isfinite(value) else None for n, value in values.items()
        },
        causal=None
        if causal is None
        else Causal.model_validate(causal, from_attributes=True),
        mean_acts=pair("mean_acts"),
        firing_rate=pair("firing_rate"),
        max_acts=pair("max_acts"),
        quiet=dict(zip(map(level_name, QUIET_LEVELS), levels, strict=True)),
    )
