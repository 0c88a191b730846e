# SPDX-License-Identifier: Apache-2.0
"""``sauce fit``: from a harvest and concepts.yaml to an SAE with rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import parse_roles
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import Bundle, check_replaceable
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts import SPARING, Catalogue, is_vision
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
    TEXT,
    Group,
    Groups,
    WordGroups,
    groups_of_samples,
    groups_of_text,
    named_in_questions,
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
    file = ConceptFile.read(request.concepts)
    concepts = tuple(file.concepts.values())
    fitted: list[Fitted] = []
    rows, catalogue, settings = [], Catalogue(), request.fit
    for moments, kind, chunks in _told_apart(request, store, file, progress):
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
            if kind.leads:
                one = leading(one, range(len(kind.leads)), found, kind.leads)
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
    if kind.kind in (OTHERS, TEXT):
        return told_by_logits(fitted, kind.pairs, found, whole, chunks)
    return sharpen(fitted, kind.pairs, whole, chunks)


def _told_apart(
    request: FitRequest,
    store: ActivationStore,
    file: ConceptFile,
    progress: Progress,
) -> Iterator[tuple[Moments, Group, Chunks]]:
    """Read the harvest; yield what rows tell apart, what is known of it, and what
    reads it again.
    """
    samples = store.samples()
    concepts = tuple(file.concepts.values())
    site, settings = request.site, request.fit
    groups, kinds = groups_of_samples(
        samples, concepts, request.split, site, settings.few
    )
    roles, words = parse_roles(request.roles), None
    of_text = groups_of_text(samples, file, request.split, site, settings.few)
    if of_text.kinds and Role.IMAGE in roles and _are_pictures(store, groups):
        # Text has rows of its own, and what its samples ask is not left to chance.
        roles = frozenset([Role.IMAGE])
    elif not is_vision(site) and roles - {Role.IMAGE}:
        _warn_of_questions(named_in_questions(samples, concepts, groups))
    if not is_vision(site) and settings.words:
        words = _word_groups(store, samples, concepts, groups)
    found = Moments(groups.shape[1], store.d_model)
    told = Moments(words.num_groups, store.d_model) if words else None
    half = _halves(samples)
    position = store.labels()[1]
    index, sample = counted_rows(store, groups, roles)
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
    tokens_read = _tokens_of(site, roles)
    for kind in kinds:
        yield found, kind._replace(tokens=tokens_read), whole
    if words and told:
        tokens = partial(again, words.of)
        yield from ((told, kind, tokens) for kind in words.kinds(told.all().samples))
    if of_text.kinds:
        yield from _text_told_apart(request, store, of_text, half)


def _warn_of_questions(named: Mapping[str, tuple[float, float]]) -> None:
    if named:
        name, (own, others) = next(iter(named.items()))
        warn(
            f"questions about pictures name {len(named)} concepts that they show, "
            f"{name!r} for one in {own:.0%} of its own and {others:.0%} of others': "
            "behind pictures their rows read what is asked; sauce harvest --questions "
            "asks whatever a picture shows, and gives text rows of its own"
        )


def _are_pictures(store: ActivationStore, groups: Tensor) -> bool:
    """Say whether all samples in a group have a picture, and tokens of it.

    A decoder that reads pictures across has one token for each, which sees none.
    """
    samples = store.samples()
    shown = all(samples[n]["picture"] for n in groups.any(1).nonzero()[:, 0].tolist())
    tokens = int((store.labels()[2] == int(Role.IMAGE)).sum())
    return shown and tokens > len(samples)


def _tokens_of(site: str, roles: Collection[Role]) -> tuple[str, ...]:
    """Return what a row acts on that was fitted on tokens of some roles."""
    kinds = zip((Role.IMAGE, Role.TEXT, Role.GENERATED), SPARING, strict=True)
    return tuple(kind for role, kind in kinds if is_vision(site) or role in roles)


def _text_told_apart(
    request: FitRequest, store: ActivationStore, told: Groups, half: Tensor
) -> Iterator[tuple[Moments, Group, Chunks]]:
    """Yield the same of tokens behind pictures, where questions were drawn."""
    groups, kinds = told
    roles = parse_roles(request.roles) - {Role.IMAGE}
    index, sample = counted_rows(store, groups, roles)
    spans = list(whole_samples(sample, ROWS_AT_ONCE))
    found = Moments(groups.shape[1], store.d_model)

    def chunks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start, stop in spans:
            at = index[start:stop]
            yield at, store.rows(at), groups[sample[start:stop]]

    for start, stop in spans:
        numbers, inverse = torch.unique(sample[start:stop], return_inverse=True)
        x = store.rows(index[start:stop])
        found.add(x, inverse, groups[numbers], half[numbers])
    tokens = _tokens_of(request.site, roles)
    for kind in kinds:
        yield found, kind._replace(tokens=tokens), chunks


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


def _halves(samples: Sequence[Mapping[str, Any]]) -> Tensor:
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
            tokens=kind.tokens,
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
