# SPDX-License-Identifier: Apache-2.0
"""``sauce fit``: from a harvest and concepts.yaml to an SAE with rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import Bundle, check_replaceable
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts import Catalogue, is_vision
from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile
from vllm_sauce.errors import ConfigError, warn
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.rows.baselines import baseline, two_sided
from vllm_sauce.learning.rows.fit import (
    HALVES,
    Chunks,
    Fitted,
    GroupMoments,
    Moments,
    fit,
    leading,
    shrunk,
)
from vllm_sauce.learning.rows.groups import (
    ABSENCE,
    OTHERS,
    Group,
    WordGroups,
    groups_of_samples,
)
from vllm_sauce.learning.rows.hardest import sharpen
from vllm_sauce.learning.rows.logistic import told_by_logits
from vllm_sauce.learning.rows.settings import FitRequest
from vllm_sauce.learning.selection.latent_statistics import (
    counted_rows,
    whole_samples,
)
from vllm_sauce.sae import Row, SAEWeights, with_rows, without_rows

ROWS_AT_ONCE = 16_384
SAME = 1e-6
"""Two means are the same that differ by a smaller share of one: by rounding."""


def fit_rows(
    request: FitRequest, progress: Progress = lambda done, total: None
) -> SAEWeights:
    """Write a folder with the SAE, if one is given, and a few rows a concept.

    Raises: ConfigError, ActivationsError, BundleError, UnsupportedSAEError
    """
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} is there already; --overwrite replaces it")
    check_replaceable(request.out)
    store = ActivationStore.open(request.harvest, request.site)
    fingerprint = store.harvest.fingerprint
    sae = read_sae(request.sae, request.site, fingerprint) if request.sae else None
    concepts = tuple(ConceptFile.read(request.concepts).concepts.values())
    fitted: list[Fitted] = []
    rows, catalogue, settings = [], Catalogue(), request.fit
    for moments, kind, chunks in _told_apart(request, store, concepts, progress):
        if request.baseline and kind.kind != OTHERS:
            continue
        found = moments.all()
        _refuse_blind(request.site, kind, found)
        if kind.kind == ABSENCE:
            mine = [n for n, c in enumerate(concepts) if c.name in kind.concepts]
            one = leading(fitted[0], mine, found, kind.pairs)
        else:
            one = fit(moments, kind.pairs, settings.shrinkages)
            if not request.baseline:
                one = _refit(one, kind, found, chunks)
        if request.baseline:
            one = baseline(request.baseline, one, found, kind)
            catalogue = two_sided(request.site, concepts)
            kind = Group(request.baseline, kind.concepts * 2, kind.pairs * 2)
        fitted.append(one)
        rows += _described(kind, one, found.samples)
    _warn_of_few(rows, request)
    merged = with_rows(
        None if sae is None else without_rows(sae),
        torch.cat([one.read for one in fitted], 1).float(),
        torch.cat([one.bias for one in fitted]).float(),
        torch.cat([one.write for one in fitted]).float(),
        rows,
    )
    bundle = Bundle.build(fingerprint, {request.site: merged}, catalogue)
    bundle.save(request.out)
    return merged


def _refuse_blind(site: str, kind: Group, found: GroupMoments) -> None:
    """Raise ConfigError where a concept's tokens are as those without it."""
    has, lacks = (list(side) for side in zip(*kind.pairs, strict=True))
    apart = (found.means[has] - found.means[lacks]).norm(dim=1)
    blind = apart <= SAME * found.means[lacks].norm(dim=1)
    if names := [name for name, one in zip(kind.concepts, blind, strict=True) if one]:
        raise ConfigError(
            f"activations at {site} are the same with {', '.join(names)} and without: "
            "what is shown does not reach it; take a later layer"
        )


def _refit(fitted: Fitted, kind: Group, found: GroupMoments, chunks: Chunks) -> Fitted:
    whole = shrunk(found.covariance, fitted.shrinkage)
    if kind.kind == OTHERS:
        return told_by_logits(fitted, kind.pairs, found, whole, chunks)
    return sharpen(fitted, kind.pairs, whole, chunks)


def _told_apart(
    request: FitRequest,
    store: ActivationStore,
    concepts: Sequence[ConceptExamples],
    progress: Progress,
) -> Iterator[tuple[Moments, Group, Chunks]]:
    """Read the harvest; yield what rows tell apart, what is known of it, and what
    reads it again.
    """
    samples = store.samples()
    site, settings = request.site, request.fit
    groups, kinds = groups_of_samples(
        samples, concepts, request.split, site, settings.few
    )
    words = None
    if not is_vision(site) and settings.words:
        words = _word_groups(store, samples, concepts, groups)
    found = Moments(groups.shape[1], store.d_model)
    told = Moments(words.num_groups, store.d_model) if words else None
    half = halves_of(samples)
    position = store.labels()[1]
    index, sample = counted_rows(store, groups, parse_roles(request.roles))
    spans = list(whole_samples(sample, ROWS_AT_ONCE))
    for start, stop in spans:
        mine = sample[start:stop]
        numbers, inverse = torch.unique(mine, return_inverse=True)
        x = store.rows(index[start:stop])
        found.add(x, inverse, groups[numbers], half[numbers])
        if words and told:
            every = torch.arange(len(x))
            at = position[index[start:stop]]
            told.add(x, every, words.of(mine, at), half[mine])
        progress(stop, len(index))

    def again(
        groups_of: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start, stop in spans:
            at = index[start:stop]
            yield at, store.rows(at), groups_of(sample[start:stop], position[at])

    whole = partial(again, lambda mine, _: groups[mine])
    yield from ((found, kind, whole) for kind in kinds)
    if words and told:
        tokens = partial(again, words.of)
        yield from ((told, kind, tokens) for kind in words.kinds(told.all().samples))


def _word_groups(
    store: ActivationStore,
    samples: Sequence[Mapping[str, Any]],
    concepts: Sequence[ConceptExamples],
    groups: Tensor,
) -> WordGroups | None:
    """Return the groups of tokens, None where every sample has a picture."""
    wanted = groups.any(1)
    text = {
        number
        for number, sample in enumerate(samples)
        if sample["picture"] is None and wanted[number]
    }
    if not text:
        return None
    from transformers import AutoTokenizer

    sample, position, role = store.labels()
    texts: dict[int, dict[int, int]] = {number: {} for number in text}
    prompts = dict.fromkeys(text, 0)
    written = (role == int(Role.GENERATED)).tolist()
    columns = (sample.tolist(), position.tolist(), store.tokens().tolist(), written)
    for number, at, token, wrote in zip(*columns, strict=True):
        if number in texts:
            texts[number][at] = token
            prompts[number] += not wrote
    tokens = {
        number: [found[at] for at in range(len(found))]
        for number, found in texts.items()
        if found
    }
    tokenizer = AutoTokenizer.from_pretrained(store.harvest.model)
    return WordGroups(tokenizer, tokens, prompts, concepts, groups)


def halves_of(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the half that each sample is in, as if by chance; a picture is in one.

    Shapes: [num_samples]
    """
    shown = (str(one["picture"] or one["key"]) for one in samples)
    digests = (hashlib.sha256(one.encode()).digest() for one in shown)
    return torch.tensor([digest[0] % HALVES for digest in digests])


def _described(kind: Group, fitted: Fitted, count: Tensor) -> list[Row]:
    return [
        Row(
            concept=name,
            kind=kind.kind,
            shrinkage=fitted.shrinkage,
            num_samples=(int(count[a]), int(count[b])),
            d_prime=round(float(d_prime), 3),
        )
        for name, (a, b), d_prime in zip(
            kind.concepts, kind.pairs, fitted.d_prime, strict=True
        )
    ]


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
