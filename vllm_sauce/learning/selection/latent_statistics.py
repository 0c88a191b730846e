# SPDX-License-Identifier: Apache-2.0
"""Statistics of an SAE's latents on harvested activations, with and without concepts.

Group 2c holds the samples with the c-th concept, group 2c + 1 those without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import alike, sink
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.concepts import is_vision
from vllm_sauce.concepts.statistics import LatentStatistics
from vllm_sauce.data.concepts_yaml import ConceptExamples
from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.sae import SAEWeights

BATCH_BYTES = 128 * 2**20
"""Memory for the latents of one batch; a longer sample is a batch of its own."""

LEVEL_TOKENS = 16_384
"""Tokens that levels are read from at most: 16 lie above a level of 0.999."""


def sample_groups(
    samples: Sequence[Mapping[str, Any]],
    concepts: Sequence[ConceptExamples],
    split: str | None,
    site: str,
) -> Tensor:
    """Return which harvested samples have a concept and which lack it.

    At the vision site a picture's patches are stored once, whatever it was asked: it
    is every example's that shows it.

    Shapes: -> [num_samples, 2 * num_concepts] bool
    Raises: ActivationsError if a concept has no sample there
    """
    groups = torch.zeros(len(samples), 2 * len(concepts), dtype=torch.bool)
    name = "picture" if is_vision(site) else "key"
    rows: dict[str, list[int]] = {}
    content_of = {}
    for number, sample in enumerate(samples):
        content_of[sample["key"]] = sample[name]
        rows.setdefault(sample[name], []).append(number)
    for number, concept in enumerate(concepts):
        for column, present in ((2 * number, True), (2 * number + 1, False)):
            keys = [
                sample.key
                for example in concept.examples(present, split)
                for sample in example.samples()
            ]
            mine = {content_of[key] for key in keys if key in content_of} - {None}
            groups[[row for content in mine for row in rows[content]], column] = True
            if not mine:
                sign = "with" if present else "without"
                raise ActivationsError(
                    f"none of the {len(keys)} samples {sign} {concept.name!r} in "
                    f"{split or 'any split'} is in this harvest; harvest the same "
                    "concepts.yaml"
                )
    # A picture with contradictory words of its own tells nothing of its patches.
    both = groups[:, 0::2] & groups[:, 1::2]
    groups[:, 0::2] &= ~both
    groups[:, 1::2] &= ~both
    return groups


@torch.inference_mode()
def concept_statistics(
    sae: SAEWeights,
    store: ActivationStore,
    groups: Tensor,
    *,
    roles: Collection[Role] = tuple(Role),
    progress: Progress = lambda done, total: None,
) -> LatentStatistics:
    """Return the latents' statistics over a harvest, in bounded memory.

    Of a template's tokens, which are alike in all samples, the largest activations
    count alone: an edit acts there all the same, so gates must know them.

    Shapes: groups [num_samples, num_groups] bool
    Raises: ConfigError if the SAE is of another width than the site
    """
    if sae.d_model != store.d_model:
        raise ConfigError(
            f"the SAE takes activations of width {sae.d_model}, {store.folder} holds "
            f"{store.site} of width {store.d_model}"
        )
    found = LatentStatistics(groups.shape[1], sae.d_sae)
    skip = alike(store)
    index, sample = counted_rows(store, groups, roles, skip)
    done = 0
    for start, stop in whole_samples(sample, max(1, BATCH_BYTES // (8 * sae.d_sae))):
        numbers, inverse = torch.unique(sample[start:stop], return_inverse=True)
        acts = sae.encode(store.rows(index[start:stop]))
        found.add(acts, inverse, groups[numbers])
        done += stop - start
        progress(done, len(index))
    number, position, _ = store.labels()
    template = (position >= sink(store.site)) & (position < skip)
    template &= number == number[:1]
    if Role.TEXT in roles and bool(template.any()):
        acts = sae.encode(store.rows(template.nonzero()[:, 0]))
        found.largest = torch.maximum(found.largest, acts.amax(0))
    return found


def counted_rows(
    store: ActivationStore,
    groups: Tensor,
    roles: Collection[Role],
    skip: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the rows of some roles whose sample is in a group, and their samples.

    ``skip``: positions of each sample that are left out; None for the sink alone, where
    no edit acts.

    Shapes: groups [num_samples, num_groups] bool -> [num_rows], [num_rows] int64
    """
    sample, position, role = store.labels()
    wanted = groups.any(1)[sample.long()] & torch.isin(
        role, torch.tensor([int(kind) for kind in roles], dtype=torch.uint8)
    )
    wanted &= position >= (sink(store.site) if skip is None else skip)
    index = wanted.nonzero()[:, 0]
    return index, sample[index].long()


def whole_samples(sample: Tensor, batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield spans of about a batch that begin and end where a sample does.

    Shapes: sample [num_tokens], the rows of a sample next to each other
    """
    counts = torch.unique_consecutive(sample, return_counts=True)[1]
    start = stop = 0
    for end in counts.cumsum(0).tolist():
        if end - start > batch_tokens and stop > start:
            yield start, stop
            start = stop
        stop = end
    if stop > start:
        yield start, stop


@torch.inference_mode()
def quiet_levels(
    sae: SAEWeights,
    store: ActivationStore,
    groups: Tensor,
    latents: Sequence[Sequence[int]],
    shares: Sequence[float],
    *,
    roles: Collection[Role] = tuple(Role),
) -> list[Tensor]:
    """Return how active latents are at most on shares of the tokens without a concept.

    One entry a concept: its latents' levels, [num_shares, num_latents]. Read from
    ``LEVEL_TOKENS`` tokens, evenly drawn.

    Shapes: groups [num_samples, 2 * num_concepts] bool
    """
    index, number = counted_rows(store, groups, roles)
    step = -(-len(index) // LEVEL_TOKENS)
    index, number = index[::step], number[::step]
    used = torch.tensor(sorted({one for mine in latents for one in mine}))
    if not len(used):
        return [torch.zeros(len(shares), 0) for _ in latents]
    rows = max(1, BATCH_BYTES // (8 * sae.d_sae))
    acts = torch.cat(
        [sae.encode(store.rows(part))[:, used] for part in index.split(rows)]
    )
    found = []
    for concept, mine in enumerate(latents):
        column = torch.searchsorted(used, torch.tensor(mine, dtype=torch.long))
        quiet = acts[groups[number, 2 * concept + 1]][:, column]
        found.append(_levels(quiet, shares))
    return found


def _levels(acts: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the values that shares of the rows stay at or below, each a real row's.

    Shapes: acts [num_tokens, num_latents] -> [num_shares, num_latents]
    """
    if not len(acts):
        # Too few tokens to have been drawn: no gate rather than a made-up one.
        return torch.zeros(len(shares), acts.shape[1])
    ordered = acts.sort(dim=0).values
    rows = [max(0, math.ceil(share * len(acts)) - 1) for share in shares]
    return ordered[rows].clamp_min(0)
