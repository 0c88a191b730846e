# SPDX-License-Identifier: Apache-2.0
"""What is counted of each latent while activations stream by; all scores need no more.

Memory is that of the counts, [num_groups, d_sae], however many tokens come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """What one group of samples shows: those with a concept, or those without."""

    num_tokens: int
    num_samples: int
    mean_acts: Tensor
    """Mean activation over the group's tokens. [d_sae] float64"""
    mean_squared: Tensor
    """Mean of the squared activation. [d_sae] float64"""
    firing_rate: Tensor
    """Share of tokens on which the latent is active. [d_sae] float64"""
    max_acts: Tensor
    """Largest activation. [d_sae] float32"""

    def first(self, count: int) -> GroupStatistics:
        """Return what the first latents show."""
        names = ("mean_acts", "mean_squared", "firing_rate", "max_acts")
        kept: dict[str, Any] = {name: getattr(self, name)[:count] for name in names}
        return replace(self, **kept)

    @property
    def sum_acts(self) -> Tensor:
        """Summed activations. [d_sae] float64"""
        return self.mean_acts * self.num_tokens

    @property
    def num_fired(self) -> Tensor:
        """Tokens on which the latent is active. [d_sae] float64"""
        return self.firing_rate * self.num_tokens


class LatentStatistics:
    """Counts of every latent over groups of samples; a sample may be in several."""

    def __init__(self, num_groups: int, d_sae: int) -> None:
        if num_groups < 1 or d_sae < 1:
            raise ConfigError("statistics need at least one group and one latent")
        counts = partial(torch.zeros, dtype=torch.float64)
        self.d_sae = d_sae
        self.num_tokens = counts(num_groups)
        self.num_samples = counts(num_groups)
        self.sums = counts(num_groups, d_sae)
        self.squares = counts(num_groups, d_sae)
        self.fired = counts(num_groups, d_sae)
        self.largest = torch.zeros(num_groups, d_sae)

    def add(self, latent_acts: Tensor, sample_of_token: Tensor, groups: Tensor) -> None:
        """Count some whole samples.

        Shapes: latent_acts [num_tokens, d_sae], sample_of_token [num_tokens] in
            0..num_samples-1, groups [num_samples, num_groups] bool
        """
        shape = (len(groups), self.d_sae)
        rows = sample_of_token.long()
        if latent_acts.shape != (len(rows), self.d_sae):
            raise ConfigError(
                f"latent_acts must be {(len(rows), self.d_sae)}, got "
                f"{tuple(latent_acts.shape)}"
            )
        acts = latent_acts.float()
        weight = groups.double().T
        largest = torch.zeros(shape)
        largest.scatter_reduce_(0, rows[:, None].expand_as(acts), acts, "amax")
        for total, values in (
            (self.sums, acts),
            (self.squares, acts.double().square()),
            (self.fired, acts > 0),
        ):
            by_sample = torch.zeros(shape, dtype=torch.float64)
            by_sample.index_add_(0, rows, values.double())
            total += weight @ by_sample
        tokens = torch.bincount(rows, minlength=len(groups)).double()
        self.num_tokens += weight @ tokens
        self.num_samples += weight @ (tokens > 0).double()
        for group, mine in enumerate((groups & (tokens > 0)[:, None]).T):
            if bool(mine.any()):
                best = largest[mine].amax(0)
                self.largest[group] = torch.maximum(self.largest[group], best)

    def group(self, index: int) -> GroupStatistics:
        """Return the means of one group.

        Raises: ConfigError if nothing was counted for it
        """
        tokens = float(self.num_tokens[index])
        if not tokens:
            raise ConfigError(f"no token was counted for group {index}")
        return GroupStatistics(
            num_tokens=int(tokens),
            num_samples=int(self.num_samples[index]),
            mean_acts=self.sums[index] / tokens,
            mean_squared=self.squares[index] / tokens,
            firing_rate=self.fired[index] / tokens,
            max_acts=self.largest[index],
        )
