# SPDX-License-Identifier: Apache-2.0
"""What each latent does to the answers about each concept, to first order.

Turning a latent down by a share s changes an answer's margin by about
-s * sum over tokens of z_j * (dmargin/dx . W_dec[j]); one backward pass tells it for
all latents. A concept's latents should carry its own answers and nothing else.

Source: attribution patching (Syed et al. 2023, arXiv:2310.10348), applied to latents
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vllm_sauce.concepts import is_vision
from vllm_sauce.concepts.scores import NEVER, ranked
from vllm_sauce.data.concepts_yaml import ConceptFile, Example
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.learning.selection.ranking import Ranking
from vllm_sauce.learning.selection.settings import ATTRIBUTION
from vllm_sauce.models.answer_tokens import beginnings
from vllm_sauce.models.loaded_model import LoadedModel, is_whole
from vllm_sauce.models.site_hooks import site_hook
from vllm_sauce.sae import SAEWeights


def rank(ranking: Ranking) -> dict[str, tuple[int, ...]]:
    """Return each concept's latents of the largest effect, and the best by S(i).

    Raises: ConfigError
    """
    request = ranking.request
    effects = attribution_scores(
        LoadedModel.load(ranking.model),
        ranking.sae,
        request.site,
        ranking.file,
        attribution_questions(
            ranking.file, request.split, request.attribution_examples
        ),
        progress=ranking.progress,
    )
    chosen = {}
    for one in ranking.scored:
        name, share = one.concept.name, one.scores["share"]
        # Rows are not ranked.
        mine = effects[name].masked_fill(share == NEVER, NEVER)
        one.scores[ATTRIBUTION] = mine
        best = ranked(mine, one.pos, request.k)
        # Calibration may rank by any score; these are where S(i) differs.
        first = ranked(share, one.pos, max(1, request.k // 2))
        chosen[name] = tuple(dict.fromkeys((*best, *first)))
    return chosen


def attribution_questions(
    file: ConceptFile, split: str | None, per_concept: int
) -> list[Question]:
    """Return two questions about every concept of enough examples.

    Enough: each concept is on ``per_concept`` of them where there are so many.
    """
    rng = random.Random(0)
    return [
        question
        for example in _examples(file, split, per_concept)
        for name in example.concepts
        for question in _about(file, example, name, rng)
    ]


def _examples(file: ConceptFile, split: str | None, per_concept: int) -> list[Example]:
    chosen: dict[str, Example] = {}
    counts = dict.fromkeys(file.concepts, 0)
    # The rarest first: their examples have others' concepts, too.
    having = {c.name: c.examples(True, split) for c in file.concepts.values()}
    for name in sorted(having, key=lambda name: len(having[name])):
        # Digests are as good as chance, and the same tomorrow.
        for example in sorted(having[name], key=lambda e: e.digest):
            if counts[name] >= per_concept:
                break
            if example.digest not in chosen:
                chosen[example.digest] = example
                for shown in example.concepts:
                    counts[shown] += 1
    return list(chosen.values())


def _about(
    file: ConceptFile, example: Example, name: str, rng: random.Random
) -> list[Question]:
    concept = file.concepts[name]
    named = Question(
        prompt=example.prompts[0],
        picture=example.picture,
        kind=Kind.NAME,
        words=concept.answers,
        about=name,
        shown=example.concepts,
    )
    if example.picture is None:
        return [named]
    asked = concept.questions
    naming = rng.choice(asked.name)
    exists = asked.asks(concept.answers[0], rng.randrange(len(asked.exists)))
    mates = file.domains()[concept.domain]
    rivals = [w for mate in mates if mate != name for w in file.concepts[mate].answers]
    yes = replace(named, kind=Kind.YES, words=(asked.yes,), rivals=(asked.no,))
    return [
        replace(named, prompt=naming, rivals=tuple(rivals)),
        replace(yes, prompt=exists),
    ]


def attribution_scores(
    loaded: LoadedModel,
    sae: SAEWeights,
    site: str,
    file: ConceptFile,
    questions: Sequence[Question],
    *,
    harm_weight: float = 1.0,
    batch: int = 16,
    progress: Progress = lambda done, total: None,
) -> dict[str, Tensor]:
    """Return for each concept and latent its effect on it less those on others.

    Against it count what the latent does for other concepts of the same examples, and
    for others of its domain on examples without it.

    Shapes: -> [d_sae] by concept
    Raises: ConfigError if the SAE's decoding is not linear in its latents, or the
        tokenizer lacks an answer
    """
    if sae.normalize_activations != "none":
        raise ConfigError(
            "attribution needs an SAE whose latents act on activations as they are; "
            f"this one normalises each token ({sae.normalize_activations}): use share"
        )
    row = {name: number for number, name in enumerate(file.concepts)}
    # For each concept: its own answers, those beside it, those of its domain.
    totals, counts = torch.zeros(len(row), 3, sae.d_sae), torch.zeros(len(row), 3, 1)

    def add(name: str, kind: int, effects: Tensor) -> None:
        totals[row[name], kind] += effects
        counts[row[name], kind] += 1

    tokenizer = loaded.tokenizer
    tokens = {
        words: [token for (token,) in beginnings(tokenizer, words)] if words else []
        for words in {words for one in questions for words in (one.words, one.rivals)}
    }
    domains = file.domains()
    loaded.model.requires_grad_(False)
    done = 0
    for part in _batches(questions, batch):
        for asked, effects in zip(
            part, _effects(loaded, sae, site, part, tokens), strict=True
        ):
            harm = effects.clamp_min(0)
            add(asked.about, 0, effects)
            for name in asked.shown:
                if name != asked.about:
                    add(name, 1, harm)
            for name in domains[file.concepts[asked.about].domain]:
                if name not in asked.shown:
                    add(name, 2, harm)
        done += len(part)
        progress(done, len(questions))
    own, beside, mates = (totals / counts.clamp_min(1)).unbind(1)
    return dict(zip(row, own - harm_weight * (beside + mates), strict=True))


def _batches(questions: Sequence[Question], batch: int) -> Iterator[list[Question]]:
    """Yield batches of which all questions have a picture, or none has."""
    for alone in (False, True):
        alike = [one for one in questions if (one.picture is None) == alone]
        for start in range(0, len(alike), batch):
            yield alike[start : start + batch]


def _effects(
    loaded: LoadedModel,
    sae: SAEWeights,
    site: str,
    part: Sequence[Question],
    tokens: Mapping[tuple[str, ...], Sequence[int]],
) -> list[Tensor]:
    """Return every latent's effect on each question's margin, over all tokens.

    Shapes: -> [d_sae] a question
    """
    samples = [Sample(key="", prompt=one.prompt, picture=one.picture) for one in part]
    inputs = loaded.inputs(samples)
    if len(part) > 1 and not is_whole(inputs, len(part)):
        # Rows of several pictures would mix.
        alone = (_effects(loaded, sae, site, [one], tokens) for one in part)
        return [effects for (effects,) in alone]
    held: list[Tensor] = []
    pairs = [(tokens[one.words], tokens[one.rivals]) for one in part]

    def hold(x: Tensor) -> Tensor:
        held.append(x.detach().requires_grad_(True))
        return held[-1]

    with torch.enable_grad(), site_hook(loaded.model, site, hold):
        logits = loaded.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        margins = torch.stack(
            [_margin(row, *pair) for row, pair in zip(logits, pairs, strict=True)]
        )
        if not held:  # text alone does not pass the tower
            return [torch.zeros(sae.d_sae)] * len(part)
        # Some towers take a picture's tiles one by one.
        gradients = torch.autograd.grad(margins.sum(), held)
    if not is_vision(site):
        # No edit acts on the sink.
        first = inputs["attention_mask"].argmax(1)
        gradients[0][torch.arange(len(part)), first] = 0
    return [
        sum(
            (
                _effect(sae, x.detach(), gradient, row, len(part))
                for x, gradient in zip(held, gradients, strict=True)
            ),
            torch.zeros(sae.d_sae),
        )
        for row in range(len(part))
    ]


@torch.no_grad()
def _effect(
    sae: SAEWeights, x: Tensor, gradient: Tensor, row: int, rows: int
) -> Tensor:
    """Return the effects over a question's tokens. Shapes: -> [d_sae]"""
    # Nothing attends to padding, so its gradient is nought.
    x, gradient = (
        one.reshape(rows, -1, sae.d_model)[row].float().cpu() for one in (x, gradient)
    )
    effects: Tensor = (sae.encode(x) * (gradient @ sae.W_dec.T)).sum(0)
    return effects


def _margin(logits: Tensor, right: Sequence[int], rivals: Sequence[int]) -> Tensor:
    """Return how far the right answer leads its rivals, or all else, in nats."""
    others = sorted(set(rivals) - set(right))
    against = logits[others] if others else logits
    return logits[list(right)].logsumexp(0) - against.logsumexp(0)
