# SPDX-License-Identifier: Apache-2.0
"""Scores of every latent for one concept: more is better, -inf is never chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_sauce.errors import ConfigError

if TYPE_CHECKING:  # the command line takes the names below, and loads no torch
    from torch import Tensor

    from vllm_sauce.concepts.statistics import GroupStatistics

NEVER = float("-inf")

Score = Callable[["GroupStatistics", "GroupStatistics"], "Tensor"]
"""Takes what was counted with and without a concept; returns [d_sae]."""


def share(pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
    """Return SAUCE's S(i): how much larger a latent's share of the mean activation is.

    Source: SAUCE (arXiv:2503.14530), selection score, with its delta
    """
    with_it, without = pos.mean_acts.float(), neg.mean_acts.float()
    return with_it / (with_it.sum() + 1e-8) - without / (without.sum() + 1e-8)


def saeuron(pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
    """Return S(i) of the latents above the 99th percentile of S over all latents.

    The authors use 99.99 and more on SAEs of tens of thousands of latents; what is
    above decides how many are edited.

    Source: SAeUron (arXiv:2501.18052), feature importance and its threshold
    """
    scores = share(pos, neg)
    return scores.masked_fill(~(scores > scores.quantile(0.99)), NEVER)


def crisp(pos: GroupStatistics, neg: GroupStatistics, k: int = 16) -> Tensor:
    """Return how much more often a latent fires, for those that also fire stronger.

    Candidates are the 10 k latents of the largest difference of counts; those stay
    whose summed activation is three times that without the concept, plus 1.
    The authors' two corpora have as many tokens; here what is counted without
    the concept is scaled to as many.

    Source: CRISP (arXiv:2508.13650), feature selection, and the authors' code
    """
    scale = pos.num_tokens / neg.num_tokens
    more_often = pos.num_fired - neg.num_fired * scale
    ratio = pos.sum_acts / (neg.sum_acts * scale + 1)
    places = more_often.argsort(descending=True, stable=True).argsort()
    chosen = (places < 10 * k) & (ratio >= 3.0)
    return more_often.masked_fill(~chosen, NEVER)


def dsg(pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
    """Return the mean squared activation of latents that the concept stands out in.

    Those stay whose ratio of it with and without the concept is at or above the 90th
    percentile of the ratio.

    Source: Dynamic SAE Guardrails (arXiv:2504.08192), Fisher-based feature selection
    """
    forget, retain = pos.mean_squared, neg.mean_squared
    ratio = forget / (retain + 1e-21)
    return forget.masked_fill(~(ratio >= ratio.quantile(0.9)), NEVER)


def rate(pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
    """Return how much larger the share of tokens on which a latent fires is."""
    return pos.firing_rate - neg.firing_rate


SCORES: Mapping[str, Score] = {
    "share": share,
    "saeuron": saeuron,
    "crisp": crisp,
    "dsg": dsg,
    "rate": rate,
}
"""Scores from statistics alone, by the name that ``sauce select --score`` takes."""


@dataclass(frozen=True, slots=True)
class CausalScore:
    """What editing one latent does to log-probabilities."""

    latent: int
    on_concept: float
    """Mean change of the concept's answer on examples with it; negative forgets."""
    on_others: float
    """Mean change of the model's own answer on examples without it."""

    def value(self) -> float:
        """Return what is forgotten less what others lose."""
        return -self.on_concept - max(0.0, -self.on_others)


def ranked(scores: Tensor, pos: GroupStatistics, k: int) -> tuple[int, ...]:
    """Return up to k latents, best first; of equals the lower index.

    A latent that never fires with the concept is not chosen, nor one scored -inf.

    Shapes: scores [d_sae]
    Raises: ConfigError
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if scores.shape != pos.firing_rate.shape or bool(scores.isnan().any()):
        raise ConfigError(
            f"scores must be numbers [d_sae={len(pos.firing_rate)}], got "
            f"{tuple(scores.shape)} with {int(scores.isnan().sum())} NaN"
        )
    order = scores.argsort(descending=True, stable=True)
    fit = (pos.firing_rate > 0) & (scores > NEVER)
    return tuple(order[fit[order]][:k].tolist())
