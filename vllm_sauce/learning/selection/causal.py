# SPDX-License-Identifier: Apache-2.0
"""What editing single latents does to answers, measured in the engine that serves.

For a concept's examples the log-probability of its word is read, for other examples
that of the word the model said unedited. The change under each latent's edit is its
causal score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_sauce.concepts import SiteEdit, check_site
from vllm_sauce.concepts.scores import CausalScore, ranked
from vllm_sauce.data.concepts_yaml import ConceptExamples, Example
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Ask, Asker, Progress
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.evaluation.metrics import mean
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.learning.selection.ranking import Ranking
from vllm_sauce.models.answer_tokens import beginnings


@dataclass(frozen=True, slots=True)
class CausalTask:
    """One concept: the latents to try, and what is asked under each one's edit."""

    latents: tuple[int, ...]
    questions: tuple[Question, ...]
    """Some that its name answers, and some whose answer is to stay."""

    def __post_init__(self) -> None:
        kinds = {question.kind for question in self.questions}
        if not self.latents or kinds != {Kind.NAME, Kind.KEEP}:
            raise ConfigError(
                "a causal score needs at least one latent, one question that the "
                "concept's name answers, and one whose answer is to stay"
            )


def rank(ranking: Ranking) -> dict[str, tuple[int, ...]]:
    """Return each concept's latents whose edit takes most from it, least from others.

    Raises: ConfigError, BundleError
    """
    request = ranking.request
    concepts = {one.concept.name: one.concept for one in ranking.scored}
    tasks = {}
    for one in ranking.scored:
        # Those of the largest S(i) are tried.
        tried = ranked(one.scores["share"], one.pos, request.causal_candidates)
        tasks[one.concept.name] = causal_task(
            one.concept, concepts, tried, request.split, request.causal_examples
        )
    latents = [latent for task in tasks.values() for latent in task.latents]
    # One engine serves all tasks, each request with its own latent's mask.
    with EngineAsker.of_candidates(
        ranking.model,
        {request.site: ranking.sae},
        latent_candidates(request.site, latents),
        engine_args=request.engine_args,
    ) as asker:
        found = measure(asker, request.site, tasks, ranking.progress)
    chosen = {}
    for one in ranking.scored:
        causal = found[one.concept.name]
        one.causal.update(causal)
        order = sorted(causal, key=lambda latent: -causal[latent].value())
        chosen[one.concept.name] = tuple(order[: request.k])
    return chosen


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


def candidate_name(site: str, latent: int) -> str:
    """Return the name under which one latent is edited."""
    return f"latent:{check_site(site)}:{latent}"


def latent_candidates(
    site: str, latents: Sequence[int]
) -> dict[str, dict[str, SiteEdit]]:
    """Return an edit for each latent that removes it."""
    return {
        candidate_name(site, latent): {site: SiteEdit.uniform([latent], 0.0)}
        for latent in sorted(set(latents))
    }


def measure(
    asker: Asker,
    site: str,
    tasks: Mapping[str, CausalTask],
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[int, CausalScore]]:
    """Return causal scores from a model that knows all the tasks' candidates."""
    tried = [
        (name, question) for name, task in tasks.items() for question in task.questions
    ]
    said = {name: q.words for name, q in tried if q.kind is Kind.NAME}
    names = {name: beginnings(asker.tokenizer, words) for name, words in said.items()}
    # What is said comes with its log-probability wherever others are wanted.
    plain = asker.ask([Ask(question=q, wanted=names[name]) for name, q in tried])
    asks, places = [], []
    for (name, question), before in zip(tried, plain, strict=True):
        wanted = names[name] if question.kind is Kind.NAME else (before.said[:1],)
        for latent in tasks[name].latents:
            forget = (candidate_name(site, latent),)
            asks.append(Ask(question=question, forget=forget, wanted=wanted))
            places.append(((name, latent, question.kind), before))
    answers = asker.ask(asks, progress)
    changes: dict[tuple[str, int, Kind], list[float]] = {}
    for ask, answer, (place, before) in zip(asks, answers, places, strict=True):
        change = answer.log_probability(ask.wanted) - before.log_probability(ask.wanted)
        changes.setdefault(place, []).append(change)
    return {
        name: {
            latent: CausalScore(
                latent,
                on_concept=mean(changes[name, latent, Kind.NAME]),
                on_others=mean(changes[name, latent, Kind.KEEP]),
            )
            for latent in task.latents
        }
        for name, task in tasks.items()
    }
