# SPDX-License-Identifier: Apache-2.0
"""``sauce select``: from a harvest and concepts.yaml to each concept's latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts.scores import SCORES, CausalScore, Score, crisp, ranked
from vllm_sauce.concepts.statistics import GroupStatistics, LatentStatistics
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile, Example
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.learning.selection.attribution import (
    attribution_questions,
    attribution_scores,
)
from vllm_sauce.learning.selection.causal import CausalTask, score_latents
from vllm_sauce.learning.selection.latent_statistics import (
    concept_statistics,
    quiet_levels,
    sample_groups,
)
from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    Causal,
    RankedLatent,
    SelectedConcept,
    SelectionFile,
    level_name,
)
from vllm_sauce.learning.selection.settings import (
    ATTRIBUTION,
    CAUSAL,
    SelectRequest,
)
from vllm_sauce.models.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class _Scored:
    """One concept's groups and scores."""

    concept: ConceptExamples
    pos: GroupStatistics
    neg: GroupStatistics
    scores: dict[str, Tensor]
    causal: dict[int, CausalScore] = field(default_factory=dict)
    """By latent, where it was asked for."""


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
    model = request.model or store.harvest.model
    if request.score == ATTRIBUTION:
        count = request.attribution_examples
        questions = attribution_questions(file, request.split, count)
        loaded = LoadedModel.load(model)
        effects = attribution_scores(
            loaded, sae, request.site, file, questions, progress=progress
        )
        for one in scored:
            one.scores[ATTRIBUTION] = effects[one.concept.name]
    if request.score == CAUSAL:
        tasks, args = _tasks(request, scored), request.engine_args
        causal = score_latents(
            model, sae, request.site, tasks, engine_args=args, progress=progress
        )
        for one in scored:
            one.causal.update(causal[one.concept.name])
    chosen = [_chosen(request, one) for one in scored]
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
) -> list[_Scored]:
    """Return each concept's groups with the scores that need statistics alone."""
    ways: dict[str, Score] = {**SCORES, "crisp": partial(crisp, k=request.k)}
    scored = []
    for number, concept in enumerate(concepts):
        pos, neg = counted.group(2 * number), counted.group(2 * number + 1)
        scores = {name: score(pos, neg) for name, score in ways.items()}
        scored.append(_Scored(concept, pos, neg, scores))
    return scored


def _tasks(request: SelectRequest, scored: Sequence[_Scored]) -> dict[str, CausalTask]:
    """Return what is asked of each concept: latents of the largest S(i) are tried."""
    concepts = {one.concept.name: one.concept for one in scored}
    tasks = {}
    for one in scored:
        tried = ranked(one.scores["share"], one.pos, request.causal_candidates)
        tasks[one.concept.name] = causal_task(
            one.concept, concepts, tried, request.split, request.causal_examples
        )
    return tasks


def causal_task(
    concept: ConceptExamples,
    concepts: Mapping[str, ConceptExamples],
    latents: tuple[int, ...],
    split: str | None,
    count: int,
) -> CausalTask:
    """Return what is asked to see the effect of latents on one concept.

    Half of the examples without it, or all if there are enough, show its domain.
    """

    def asked(example: Example) -> Question:
        has = [concepts[name] for name in example.concepts if name in concepts]
        same = [other for other in has if other.domain == concept.domain]
        return _naming((same or has or [concept])[0], example)

    def named(example: Example) -> Question:
        asked = _naming(concept, example)
        return replace(asked, kind=Kind.NAME, words=concept.answers)

    def drawn(examples: Sequence[Example], count: int) -> list[Example]:
        # Digests are as good as chance, and the same tomorrow.
        return sorted(examples, key=lambda example: example.digest)[:count]

    domain = {n for n, other in concepts.items() if other.domain == concept.domain}
    negative = concept.examples(False, split)
    near = drawn([e for e in negative if domain & set(e.concepts)], count - count // 2)
    far = drawn([e for e in negative if e not in near], count - len(near))
    positive = drawn(concept.examples(True, split), count)
    return CausalTask(
        latents=latents,
        questions=(*map(named, positive), *map(asked, (*near, *far))),
    )


def _naming(concept: ConceptExamples, example: Example) -> Question:
    """Ask for a concept's name; text alone is asked as it is."""
    alone = example.picture is None
    prompt = example.prompts[0] if alone else concept.questions.name[0]
    return Question(prompt=prompt, picture=example.picture)


def _chosen(request: SelectRequest, one: _Scored) -> tuple[int, ...]:
    """Return the latents that are kept of a concept, best first."""
    if request.score == CAUSAL:
        order = sorted(one.causal.values(), key=lambda score: -score.value())
        return tuple(score.latent for score in order[: request.k])
    chosen = ranked(one.scores[request.score], one.pos, request.k)
    if request.score != ATTRIBUTION:
        return chosen
    # Calibration may rank by any score; these are where S(i) differs.
    first = ranked(one.scores["share"], one.pos, max(1, request.k // 2))
    return tuple(dict.fromkeys((*chosen, *first)))


def _selected(one: _Scored, chosen: Sequence[int], quiet: Tensor) -> SelectedConcept:
    """Shapes: quiet [num_shares, num_latents]"""
    return SelectedConcept(
        domain=one.concept.domain,
        num_samples=(one.pos.num_samples, one.neg.num_samples),
        latents=[
            _latent(one, latent, levels)
            for latent, levels in zip(chosen, quiet.T.tolist(), strict=True)
        ],
    )


def _latent(one: _Scored, latent: int, levels: Sequence[float]) -> RankedLatent:
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
