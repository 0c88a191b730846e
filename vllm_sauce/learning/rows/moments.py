# SPDX-License-Identifier: Apache-2.0
"""Means of groups of samples and one covariance, while activations stream by.

Everything is kept twice, for halves of the samples: what is fitted on one half is
tried on the other without reading anything again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

HALVES = 2


@dataclass(frozen=True, slots=True)
class GroupMoments:
    """What some samples are like."""

    means: Tensor
    """Mean activation of each group. [num_groups, d_model] float64"""
    samples: Tensor
    """Samples of each group. [num_groups] int64"""
    covariance: Tensor
    """Of all rows, whatever their group. [d_model, d_model] float64"""
    mean: Tensor
    """Of all rows. [d_model] float64"""


class Moments:
    """Sums over groups of samples and over all rows; a sample may be in several."""

    def __init__(self, num_groups: int, d_model: int) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64)
        self._tokens = zeros(HALVES, num_groups)
        self._samples = torch.zeros(HALVES, num_groups, dtype=torch.int64)
        self._sums = zeros(HALVES, num_groups, d_model)
        self._count = zeros(HALVES)
        self._total = zeros(HALVES, d_model)
        self._squares = zeros(HALVES, d_model, d_model)

    def add(self, x: Tensor, sample: Tensor, groups: Tensor, half: Tensor) -> None:
        """Count some whole samples.

        Shapes: x [num_rows, d_model], sample [num_rows] in 0..num_samples-1, groups
            [num_samples, num_groups] bool, half [num_samples] in 0..1
        """
        for number in range(HALVES):
            mine = half == number
            rows = x[mine[sample]].double()
            kept = sample[mine[sample]]
            by_sample = torch.zeros(len(groups), x.shape[1], dtype=torch.float64)
            by_sample.index_add_(0, kept, rows)
            tokens = torch.bincount(kept, minlength=len(groups)).double()
            weight = groups.double().T
            self._sums[number] += weight @ by_sample
            self._tokens[number] += weight @ tokens
            self._samples[number] += (groups & (tokens > 0)[:, None]).sum(0)
            self._count[number] += len(rows)
            self._total[number] += rows.sum(0)
            self._squares[number] += rows.T @ rows

    def half(self, number: int) -> GroupMoments:
        """Return one half's."""
        return self._of(slice(number, number + 1))

    def all(self) -> GroupMoments:
        """Return those of all samples."""
        return self._of(slice(None))

    def _of(self, halves: slice) -> GroupMoments:
        tokens, count = self._tokens[halves].sum(0), self._count[halves].sum()
        mean = self._total[halves].sum(0) / count.clamp_min(1)
        squares = self._squares[halves].sum(0) / count.clamp_min(1)
        return GroupMoments(
            means=self._sums[halves].sum(0) / tokens.clamp_min(1)[:, None],
            samples=self._samples[halves].sum(0),
            covariance=squares - mean.outer(mean),
            mean=mean,
        )
