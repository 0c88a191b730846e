# SPDX-License-Identifier: Apache-2.0
"""What each latent does to the answers about each concept, to first order.

Turning a latent down by a share s changes an answer's margin by about
-s * sum over tokens of z_j * (dmargin/dx . W_dec[j]); one backward pass tells it for
all latents. A concept's latents should carry its own answers and nothing else.

Source: attribution patching (Syed et al. 2023, arXiv:2310.10348), applied to latents
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vllm_sauce.data.concepts_yaml import ConceptFile, Example
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.models.answer_tokens import beginnings
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook
from vllm_sauce.sae import SAEWeights

Progress = Callable[[int, int], None]


def latent_effects(sae: SAEWeights, acts: Tensor, gradient: Tensor) -> Tensor:
    """Return what each latent adds to an output, to first order, over all tokens.

    Shapes: acts [..., num_tokens, d_sae], gradient [..., num_tokens, d_model]
        -> [..., d_sae]
    """
    return (acts * (gradient @ sae.W_dec.T)).sum(-2)


def attribution_questions(
    file: ConceptFile, split: str | None, per_concept: int = 16, seed: int = 0
) -> list[Question]:
    """Return two questions about every concept of enough examples.

    Enough: each concept is on ``per_concept`` of them where there are so many.
    """
    rng = random.Random(seed)
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
    order = sorted(
        file.concepts.values(), key=lambda c: len(c.examples(True, split) or ())
    )
    for concept in order:
        # Digests are as good as chance, and the same tomorrow.
        for example in sorted(concept.examples(True, split), key=lambda e: e.digest):
            if counts[concept.name] >= per_concept:
                break
            if example.digest not in chosen:
                chosen[example.digest] = example
                for name in example.concepts:
                    counts[name] += 1
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


@dataclass(slots=True)
class _Mean:
    """A running mean of effects."""

    total: Tensor
    count: int = 0

    def add(self, effects: Tensor) -> None:
        self.total += effects
        self.count += 1

    def value(self) -> Tensor:
        return self.total / max(self.count, 1)


@dataclass(slots=True)
class _Tally:
    """One concept's effects."""

    d_sae: int
    own: _Mean = field(init=False)
    beside: _Mean = field(init=False)
    mates: _Mean = field(init=False)

    def __post_init__(self) -> None:
        self.own, self.beside, self.mates = (
            _Mean(torch.zeros(self.d_sae)) for _ in range(3)
        )


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
    tallies = {name: _Tally(sae.d_sae) for name in file.concepts}
    tokenizer = loaded.processor.tokenizer
    tokens = {
        words: [token for (token,) in beginnings(tokenizer, words)] if words else []
        for words in {words for one in questions for words in (one.words, one.rivals)}
    }
    domains = file.domains()
    loaded.model.requires_grad_(False)
    # All of a batch have a picture, or none has.
    order = sorted(questions, key=lambda asked: asked.picture is None)
    split = sum(asked.picture is not None for asked in order)
    starts = [*range(0, split, batch), *range(split, len(order), batch)]
    for start in starts:
        end = split if start < split else len(order)
        part = order[start : min(start + batch, end)]
        for asked, effects in zip(
            part, _effects(loaded, sae, site, part, tokens), strict=True
        ):
            harm = effects.clamp_min(0)
            tallies[asked.about].own.add(effects)
            for name in asked.shown:
                if name != asked.about:
                    tallies[name].beside.add(harm)
            for name in domains[file.concepts[asked.about].domain]:
                if name not in asked.shown:
                    tallies[name].mates.add(harm)
        progress(start + len(part), len(order))
    return {
        name: tally.own.value()
        - harm_weight * (tally.beside.value() + tally.mates.value())
        for name, tally in tallies.items()
    }


def _effects(
    loaded: LoadedModel,
    sae: SAEWeights,
    site: str,
    part: Sequence[Question],
    tokens: Mapping[tuple[str, ...], Sequence[int]],
) -> list[Tensor]:
    """Return every latent's effect on each question's margin.

    Shapes: -> [d_sae] a question
    """
    inputs = loaded.inputs(
        [Sample(key="", prompt=one.prompt, picture=one.picture) for one in part]
    )
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
        (gradient,) = torch.autograd.grad(margins.sum(), held)
    # Nothing attends to padding, so its gradient is nought.
    with torch.no_grad():
        return [
            latent_effects(sae, sae.encode(x.float().cpu()), g.float().cpu())
            for x, g in zip(held[0].detach(), gradient, strict=True)
        ]


def _margin(logits: Tensor, right: Sequence[int], rivals: Sequence[int]) -> Tensor:
    """Return how far the right answer leads its rivals, or all else, in nats."""
    others = sorted(set(rivals) - set(right))
    against = logits[others] if others else logits
    return logits[list(right)].logsumexp(0) - against.logsumexp(0)
