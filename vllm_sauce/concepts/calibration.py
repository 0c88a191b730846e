# SPDX-License-Identifier: Apache-2.0
"""Search a concept's edit: how many latents, how far down, above which gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_sauce.concepts.catalogue import SiteEdit
from vllm_sauce.errors import ConfigError

Setting = tuple[tuple[str, object], ...]
"""One value for every coordinate of a grid, in the grid's order."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting and how well it did; more is better."""

    setting: Setting
    score: float

    def value(self, name: str) -> object:
        """Return the value of one coordinate."""
        return dict(self.setting)[name]


def coordinate_search(
    grid: Mapping[str, Sequence[object]],
    start: Mapping[str, object],
    evaluate: Callable[[Mapping[str, object]], float],
    passes: int = 2,
) -> list[Trial]:
    """Return every setting tried, best first; ties keep the earlier one.

    One coordinate at a time takes its best value while the others stay, until a pass
    changes nothing. No setting is evaluated twice.

    Raises: ConfigError if start does not fit the grid
    """
    if set(grid) != set(start) or any(start[name] not in grid[name] for name in grid):
        raise ConfigError(f"start {dict(start)} is no point of the grid {dict(grid)}")
    scores: dict[Setting, float] = {}

    def score(point: Mapping[str, object]) -> float:
        setting = tuple((name, point[name]) for name in grid)
        if setting not in scores:
            scores[setting] = evaluate(point)
        return scores[setting]

    best = dict(start)
    for _ in range(passes):
        before = dict(best)
        for name, values in grid.items():
            # The present value first, so that a tie does not move.
            order = [best[name], *(value for value in values if value != best[name])]
            best[name] = max(order, key=lambda value: score({**best, name: value}))
        if best == before:
            break
    trials = [Trial(setting, value) for setting, value in scores.items()]
    return sorted(trials, key=lambda trial: -trial.score)


def gate_levels(negative_acts: Tensor, quantile: float) -> Tensor:
    """Return for each latent the activation that this share of tokens stays below.

    Shapes: negative_acts [num_tokens, k], on pictures without the concept -> [k]
    """
    if not 0 <= quantile <= 1:
        raise ConfigError(f"a quantile lies in 0..1, got {quantile}")
    if quantile == 0:
        return torch.zeros(negative_acts.shape[1])
    rank = min(int(quantile * len(negative_acts)), len(negative_acts) - 1)
    return negative_acts.sort(dim=0).values[rank].clamp_min(0)


def prune(
    edit: SiteEdit,
    evaluate: Callable[[SiteEdit], float],
    score: float,
    tolerance: float = 0.0,
    chunks: int = 4,
) -> tuple[SiteEdit, float]:
    """Drop groups of latents, last ranked first, whose loss costs no score.

    Returns the smaller edit and its score; ``tolerance`` is what a drop may cost.
    """
    width = max(1, len(edit.latents) // chunks)
    stop = len(edit.latents)
    while stop > 0 and len(edit.latents) > width:
        start = max(0, stop - width)
        smaller = _without(edit, range(start, stop))
        if smaller is not None:
            without = evaluate(smaller)
            if without >= score - tolerance:
                edit, score = smaller, without
        stop = start
    return edit, score


def _without(edit: SiteEdit, dropped: range) -> SiteEdit | None:
    kept = [i for i in range(len(edit.latents)) if i not in dropped]
    if not kept:
        return None
    return SiteEdit(
        latents=tuple(edit.latents[i] for i in kept),
        gamma=tuple(edit.gamma[i] for i in kept),
        shift=tuple(edit.shift[i] for i in kept),
        gate=tuple(edit.gate[i] for i in kept),
    )
