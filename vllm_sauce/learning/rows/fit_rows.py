# SPDX-License-Identifier: Apache-2.0
"""``sauce fit``: from a harvest and concepts.yaml to an SAE with rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import Bundle, check_replaceable
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts import VISION, Catalogue
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile
from vllm_sauce.errors import ConfigError, warn
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.rows.fit import Fitted, fit
from vllm_sauce.learning.rows.moments import HALVES, Moments
from vllm_sauce.learning.rows.settings import FitRequest
from vllm_sauce.learning.selection.latent_statistics import (
    counted_rows,
    sample_groups,
    whole_samples,
)
from vllm_sauce.sae import Row, SAEWeights, with_rows, without_rows

ABSENCE, OTHERS = "absence", "others"
ROWS_AT_ONCE = 16_384


class Group(NamedTuple):
    """Rows of concepts that are told from the same kind of samples."""

    towards: str
    concepts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """Columns of the groups: with the concept, and without."""


def fit_rows(
    request: FitRequest, progress: Progress = lambda done, total: None
) -> SAEWeights:
    """Write a folder with the SAE, if one is given, and a row or two a concept.

    Each has one towards the mean of the samples without it, and one towards absence
    if some samples have none of its domain and it is not the only one there.

    Raises: ConfigError, ActivationsError, BundleError, UnsupportedSAEError
    """
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} is there already; --overwrite replaces it")
    check_replaceable(request.out)
    store = ActivationStore.open(request.harvest, request.site)
    fingerprint = store.harvest.fingerprint
    sae = read_sae(request.sae, request.site, fingerprint) if request.sae else None
    concepts = tuple(ConceptFile.read(request.concepts).concepts.values())
    samples = store.samples()
    groups, kinds = _groups(samples, concepts, request)
    moments = _moments(store, groups, samples, request, progress)
    found = moments.all().samples
    fitted = [
        fit(
            moments,
            kind.pairs,
            request.fit.shrinkages,
            orthogonal=request.fit.orthogonal,
        )
        for kind in kinds
    ]
    rows = [
        Row(
            concept=name,
            towards=kind.towards,
            shrinkage=one.shrinkage,
            num_samples=(int(found[a]), int(found[b])),
            d_prime=round(float(d_prime), 3),
        )
        for kind, one in zip(kinds, fitted, strict=True)
        for name, (a, b), d_prime in zip(
            kind.concepts, kind.pairs, one.d_prime, strict=True
        )
    ]
    _warn_of_few(rows, request)
    merged = _merged(None if sae is None else without_rows(sae), fitted, rows)
    bundle = Bundle.build(fingerprint, {request.site: merged}, Catalogue())
    bundle.save(request.out)
    return merged


def _groups(
    samples: Sequence[Mapping[str, Any]],
    concepts: Sequence[ConceptExamples],
    request: FitRequest,
) -> tuple[Tensor, list[Group]]:
    """Return which sample is in which group, and the groups that rows tell apart.

    Behind the columns of ``sample_groups`` is one for each domain: samples that lack
    every concept of it and show as little else as enough of them do, so that nothing
    stands in its place.

    Shapes: -> [num_samples, 2 * num_concepts + num_domains] bool
    """
    groups = sample_groups(samples, concepts, request.split, request.site)
    names = tuple(one.name for one in concepts)
    domains: dict[str, list[int]] = {}
    for number, one in enumerate(concepts):
        domains.setdefault(one.domain, []).append(number)
    columns = [groups]
    absent: dict[str, int] = {}
    shown = groups[:, 0::2].sum(1)
    for domain, members in domains.items():
        lacking = groups[:, [2 * one + 1 for one in members]].all(1)
        # With one concept, to lack it and to lack all of them is the same.
        if len(members) > 1 and bool(lacking.any()):
            absent[domain] = 2 * len(concepts) + len(absent)
            columns.append(_emptiest(lacking, shown, request.fit.few)[:, None])
    others = tuple((2 * one, 2 * one + 1) for one in range(len(concepts)))
    kinds = [Group(OTHERS, names, others)]
    if absent:
        mine = [one for one, c in enumerate(concepts) if c.domain in absent]
        pairs = tuple((2 * one, absent[concepts[one].domain]) for one in mine)
        kinds.append(Group(ABSENCE, tuple(names[one] for one in mine), pairs))
    return torch.cat(columns, 1), kinds


def _emptiest(lacking: Tensor, shown: Tensor, enough: int) -> Tensor:
    """Return those of some samples that show the fewest concepts, enough of them.

    Shapes: lacking [num_samples] bool, shown [num_samples] -> [num_samples] bool
    """
    counts = shown[lacking].sort().values
    return lacking & (shown <= counts[min(enough, len(counts)) - 1])


def _moments(
    store: ActivationStore,
    groups: Tensor,
    samples: Sequence[Mapping[str, Any]],
    request: FitRequest,
    progress: Progress,
) -> Moments:
    """Count every row once; the halves hold whole samples, as if by chance."""
    name = "picture" if request.site == VISION else "key"
    half = torch.tensor(
        [
            hashlib.sha256(str(one[name]).encode()).digest()[0] % HALVES
            for one in samples
        ]
    )
    found = Moments(groups.shape[1], store.d_model)
    index, sample = counted_rows(store, groups, parse_roles(request.roles))
    for start, stop in whole_samples(sample, ROWS_AT_ONCE):
        numbers, inverse = torch.unique(sample[start:stop], return_inverse=True)
        x = store.rows(index[start:stop])
        found.add(x, inverse, groups[numbers], half[numbers])
        progress(stop, len(index))
    return found


def _warn_of_few(rows: Sequence[Row], request: FitRequest) -> None:
    few = [row for row in rows if row.num_samples[0] < request.fit.few]
    if few:
        least = min(few, key=lambda row: row.num_samples)
        warn(
            f"{len({row.concept for row in few})} concepts have fewer than "
            f"{request.fit.few} samples, {least.concept!r} has "
            f"{least.num_samples[0]}: their rows also read what these samples happen "
            "to share; give more examples"
        )


def _merged(
    sae: SAEWeights | None, fitted: Sequence[Fitted], rows: Sequence[Row]
) -> SAEWeights:
    return with_rows(
        sae,
        torch.cat([one.read for one in fitted], 1).float(),
        torch.cat([one.bias for one in fitted]).float(),
        torch.cat([one.write for one in fitted]).float(),
        rows,
    )
