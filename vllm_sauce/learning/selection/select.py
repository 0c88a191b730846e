# SPDX-License-Identifier: Apache-2.0
"""``sauce select``: from a harvest and concepts.yaml to each concept's latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts.scores import NEVER, SCORES, Score, crisp, ranked
from vllm_sauce.concepts.statistics import LatentStatistics
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.selection.latent_statistics import (
    concept_statistics,
    quiet_levels,
    sample_groups,
)
from vllm_sauce.learning.selection.ranking import Rank, Ranking, Scored
from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    Causal,
    RankedLatent,
    SelectedConcept,
    SelectionFile,
    level_name,
    row_ranking,
)
from vllm_sauce.learning.selection.settings import MODEL_SCORES, SelectRequest
from vllm_sauce.sae import SAEWeights


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
    scored = _scored(request, concepts, counted, sae.d_sae - len(sae.rows))
    if request.score in MODEL_SCORES and len(sae.rows) < sae.d_sae:
        rank: Rank = import_module(f"{__package__}.{request.score}").rank
        ranking = Ranking(
            request=request,
            model=request.model or store.harvest.model,
            sae=sae,
            file=file,
            scored=scored,
            progress=progress,
        )
        latents = rank(ranking)
        chosen = [latents[one.concept.name] for one in scored]
    else:
        by = "share" if request.score in MODEL_SCORES else request.score
        chosen = [ranked(one.scores[by], one.pos, request.k) for one in scored]
    rows = [_rows_of(sae, one.concept.name) for one in scored]
    wanted = [(*a, *b) for a, b in zip(chosen, rows, strict=True)]
    levels = quiet_levels(sae, store, groups, wanted, QUIET_LEVELS, roles=roles)
    return SelectionFile(
        fingerprint=store.harvest.fingerprint,
        site=request.site,
        d_sae=sae.d_sae,
        split=request.split,
        score=request.score,
        k=request.k,
        roles=list(request.roles),
        concepts={
            one.concept.name: _selected(one, latents, mine, quiet)
            for one, latents, mine, quiet in zip(
                scored, chosen, rows, levels, strict=True
            )
        },
    )


def _rows_of(sae: SAEWeights, concept: str) -> dict[int, str]:
    """Return the rows of a concept among an SAE's latents, and how each ranks."""
    first = sae.d_sae - len(sae.rows)
    return {
        first + number: row_ranking(row.kind)
        for number, row in enumerate(sae.rows)
        if row.concept == concept
    }


def _scored(
    request: SelectRequest,
    concepts: Sequence[ConceptExamples],
    counted: LatentStatistics,
    trained: int,
) -> list[Scored]:
    """Return each concept's groups with the scores that need statistics alone.

    ``trained``: so many latents are ranked; rows behind them are each for one concept.
    """
    ways: dict[str, Score] = {**SCORES, "crisp": partial(crisp, k=request.k)}
    scored = []
    for number, concept in enumerate(concepts):
        pos, neg = counted.group(2 * number), counted.group(2 * number + 1)
        never = torch.full((counted.d_sae - trained,), NEVER)
        scores = {
            name: torch.cat([score(pos.first(trained), neg.first(trained)), never])
            for name, score in ways.items()
            if trained
        } or dict.fromkeys(ways, never)
        scored.append(Scored(concept, pos, neg, scores))
    return scored


def _selected(
    one: Scored, chosen: Sequence[int], rows: Mapping[int, str], quiet: Tensor
) -> SelectedConcept:
    """Shapes: quiet [num_shares, num_latents + num_rows]"""
    levels = dict(zip((*chosen, *rows), quiet.T.tolist(), strict=True))
    return SelectedConcept(
        domain=one.concept.domain,
        num_samples=(one.pos.num_samples, one.neg.num_samples),
        latents=[_latent(one, latent, levels[latent]) for latent in chosen],
        rows=[
            _latent(one, row, levels[row]).model_copy(update={"scores": {ranking: 1.0}})
            for row, ranking in rows.items()
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
