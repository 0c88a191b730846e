# SPDX-License-Identifier: Apache-2.0
"""What is counted of each latent while activations stream by; all scores need no more.

Memory is that of the counts, [num_groups, d_sae], however many tokens come. Counts of
parts of a stream add up to those of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from vllm_sauce.errors import ConfigError

LEVELS_PER_OCTAVE = 4
LOWEST, HIGHEST = 2.0**-10, 2.0**10
"""Levels of a latent's largest activation in a sample; beyond them is at the end."""
NUM_LEVELS = 20 * LEVELS_PER_OCTAVE + 2
"""Bin 0: it never fired in the sample; bin n: up to LOWEST * 2 ** ((n - 1) / 4)."""


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
    sample_rate: Tensor
    """Share of samples in which it is active anywhere. [d_sae] float64"""
    max_acts: Tensor
    """Largest activation. [d_sae] float32"""

    @property
    def sum_acts(self) -> Tensor:
        """Summed activations. [d_sae] float64"""
        return self.mean_acts * self.num_tokens

    @property
    def num_fired(self) -> Tensor:
        """Tokens on which the latent is active. [d_sae] float64"""
        return self.firing_rate * self.num_tokens


@dataclass(slots=True)
class LatentStatistics:
    """Counts of every latent over groups of samples; a sample may be in several."""

    num_groups: int
    d_sae: int
    levels: bool = False
    """Also count the levels of each sample's largest activation, for percentiles."""
    num_tokens: Tensor = field(init=False)
    """[num_groups] float64"""
    num_samples: Tensor = field(init=False)
    """[num_groups] float64"""
    sums: Tensor = field(init=False)
    """[num_groups, d_sae] float64"""
    squares: Tensor = field(init=False)
    """[num_groups, d_sae] float64"""
    fired: Tensor = field(init=False)
    """[num_groups, d_sae] float64"""
    samples_fired: Tensor = field(init=False)
    """[num_groups, d_sae] float64"""
    largest: Tensor = field(init=False)
    """[num_groups, d_sae] float32"""
    histogram: Tensor | None = field(init=False)
    """[num_groups, d_sae, NUM_LEVELS] int32"""

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.d_sae < 1:
            raise ConfigError("statistics need at least one group and one latent")
        shape = (self.num_groups, self.d_sae)
        for name in ("num_tokens", "num_samples"):
            setattr(self, name, torch.zeros(self.num_groups, dtype=torch.float64))
        for name in ("sums", "squares", "fired", "samples_fired"):
            setattr(self, name, torch.zeros(shape, dtype=torch.float64))
        self.largest = torch.zeros(shape)
        self.histogram = (
            torch.zeros(*shape, NUM_LEVELS, dtype=torch.int32) if self.levels else None
        )

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
        self.samples_fired += weight @ (largest > 0).double()
        self._add_largest(largest, groups & (tokens > 0)[:, None])

    def _add_largest(self, largest: Tensor, groups: Tensor) -> None:
        bins = level_of(largest)
        for group, mine in enumerate(groups.T):
            if not bool(mine.any()):
                continue
            best = largest[mine].amax(0)
            self.largest[group] = torch.maximum(self.largest[group], best)
            if self.histogram is not None:
                ones = torch.ones_like(bins[mine].T, dtype=torch.int32)
                self.histogram[group].scatter_add_(1, bins[mine].T, ones)

    def merge(self, other: LatentStatistics) -> None:
        """Add what was counted elsewhere.

        Raises: ConfigError if the other counted other things
        """
        mine = (self.num_groups, self.d_sae, self.levels)
        theirs = (other.num_groups, other.d_sae, other.levels)
        if mine != theirs:
            raise ConfigError(
                f"cannot add statistics of {theirs} to {mine} groups, latents, levels"
            )
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "largest":
                torch.maximum(value, other.largest, out=value)
            elif isinstance(value, Tensor):
                value += getattr(other, entry.name)

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
            sample_rate=self.samples_fired[index] / self.num_samples[index],
            max_acts=self.largest[index],
        )

    def percentile(self, index: int, share: float) -> Tensor:
        """Return the level that a latent's largest activation stays at or below.

        In at least ``share`` of the group's samples; true up to one level, 2 ** (1/4).

        Shapes: -> [d_sae] float32
        """
        if self.histogram is None:
            raise ConfigError("percentiles need statistics with levels=True")
        if not 0 <= share <= 1:
            raise ConfigError(f"a share lies in 0..1, got {share}")
        counts = self.histogram[index].double().cumsum(1)
        wanted = share * float(self.num_samples[index])
        bins = (counts < wanted).sum(1).clamp_max(NUM_LEVELS - 1)
        upper = LOWEST * 2 ** ((bins - 1).float() / LEVELS_PER_OCTAVE)
        return torch.where(bins == 0, 0.0, upper)


def level_of(acts: Tensor) -> Tensor:
    """Return the bin of an activation: 0 if it is not positive, else by its octave.

    Shapes: [...] -> [...] int64
    """
    octaves = (acts.clamp(LOWEST, HIGHEST) / LOWEST).log2()
    bins = (octaves * LEVELS_PER_OCTAVE).ceil().long() + 1
    return torch.where(acts > 0, bins.clamp_max(NUM_LEVELS - 1), 0)
