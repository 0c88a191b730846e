# SPDX-License-Identifier: Apache-2.0
"""What editing single latents does to answers, measured in the engine that serves.

For a concept's examples the log-probability of its word is read, for other examples
that of the word the model said unedited. The change under each latent's edit is its
causal score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_sauce.concepts import SiteEdit, check_site
from vllm_sauce.concepts.scores import CausalScore
from vllm_sauce.data.samples import Picture
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.probes import Probe, Reading
from vllm_sauce.evaluation.asking.vllm_engine import CandidateEngine, Progress
from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about an example."""

    prompt: str
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class CausalTask:
    """One concept: the latents to try, and examples with and without it."""

    latents: tuple[int, ...]
    answers: tuple[str, ...]
    """Words that the model says for the concept."""
    positive: tuple[Question, ...]
    negative: tuple[Question, ...]

    def __post_init__(self) -> None:
        for name in ("latents", "answers", "positive", "negative"):
            if not getattr(self, name):
                raise ConfigError(f"a causal score needs at least one of {name}")


def candidate_name(site: str, latent: int) -> str:
    """Return the name under which one latent is edited."""
    return f"latent:{check_site(site)}:{latent}"


def latent_candidates(
    site: str, latents: Sequence[int], gamma: float = 0.0
) -> dict[str, dict[str, SiteEdit]]:
    """Return an edit for each latent: ``gamma`` 0 removes it, less turns it over."""
    return {
        candidate_name(site, latent): {site: SiteEdit.uniform([latent], gamma)}
        for latent in sorted(set(latents))
    }


def score_latents(
    model: str | Path,
    sae: SAEWeights,
    site: str,
    tasks: Mapping[str, CausalTask],
    *,
    gamma: float = 0.0,
    engine_args: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[int, CausalScore]]:
    """Return the causal score of every task's latents, by task and latent.

    One engine serves all tasks, each request with its own latent's mask.

    Raises: ConfigError, BundleError
    """
    latents = [latent for task in tasks.values() for latent in task.latents]
    candidates = latent_candidates(site, latents, gamma)
    with CandidateEngine(
        model, {site: sae}, candidates, engine_args=engine_args
    ) as engine:
        return measure(engine, site, tasks, progress)


def measure(
    engine: CandidateEngine,
    site: str,
    tasks: Mapping[str, CausalTask],
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[int, CausalScore]]:
    """Return causal scores from an engine that has all the tasks' candidates."""
    tokens = {name: engine.answer_tokens(task.answers) for name, task in tasks.items()}
    plain = _plain(engine, tasks, tokens)
    probes, places = [], []
    for name, task in tasks.items():
        for number, question in enumerate(_questions(task)):
            before = plain[name][number]
            # Where the concept is not, what the model said must not suffer.
            present = number < len(task.positive)
            read = tokens[name] if present else before.said[:1]
            for latent in task.latents:
                probes.append(_probe(question, read, candidate_name(site, latent)))
                places.append((name, latent, present, before))
    readings = engine.evaluate(probes, progress)
    changes: dict[tuple[str, int, bool], list[float]] = {}
    for probe, reading, (name, latent, present, before) in zip(
        probes, readings, places, strict=True
    ):
        change = _log_sum(reading, probe.tokens) - _log_sum(before, probe.tokens)
        changes.setdefault((name, latent, present), []).append(change)
    return {
        name: {
            latent: CausalScore(
                latent,
                on_concept=_mean(changes[name, latent, True]),
                on_others=_mean(changes[name, latent, False]),
            )
            for latent in task.latents
        }
        for name, task in tasks.items()
    }


def _plain(
    engine: CandidateEngine,
    tasks: Mapping[str, CausalTask],
    tokens: Mapping[str, tuple[int, ...]],
) -> dict[str, list[Reading]]:
    """Return the unedited readings; each also has the token that was said."""
    probes, owner = [], []
    for name, task in tasks.items():
        for question in _questions(task):
            probes.append(_probe(question, tokens[name], None))
            owner.append(name)
    found: dict[str, list[Reading]] = {name: [] for name in tasks}
    for name, reading in zip(owner, engine.evaluate(probes), strict=True):
        found[name].append(reading)
    return found


def _questions(task: CausalTask) -> tuple[Question, ...]:
    return (*task.positive, *task.negative)


def _probe(question: Question, tokens: tuple[int, ...], candidate: str | None) -> Probe:
    return Probe(
        prompt=question.prompt,
        picture=question.picture,
        candidates=() if candidate is None else (candidate,),
        tokens=tokens,
    )


def _log_sum(reading: Reading, tokens: Sequence[int]) -> float:
    """Return the log-probability that the answer begins with one of the tokens."""
    values = [reading.logprobs[token] for token in tokens]
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
