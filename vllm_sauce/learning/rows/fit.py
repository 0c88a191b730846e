# SPDX-License-Identifier: Apache-2.0
"""Rows from moments: read by linear discriminant, written along the mean.

A concept's samples have the mean p, those it is told from the mean m, all rows the
covariance C. Its row reads ``z = w (x - m)`` with ``w`` along ``C^-1 (p - m)``, scaled
so that z is 1 at p, and writes along ``u = p - m``: taking away ``z u`` takes a sample
that has the concept to where those without it are.

Source: Fisher's linear discriminant; Belrose et al. 2023, arXiv:2306.03819 (LEACE),
reads as here and writes along ``C w``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

HALVES = 2
"""Everything is kept twice, for halves of the samples: what is fitted on one half is
tried on the other without reading anything again."""


@dataclass(frozen=True, slots=True)
class GroupMoments:
    """What some samples are like."""

    means: Tensor
    """Mean activation of each group. [num_groups, d_model] float64"""
    tokens: Tensor
    """Rows of each group. [num_groups] float64"""
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
            tokens=tokens,
            samples=self._samples[halves].sum(0),
            covariance=squares - mean.outer(mean),
            mean=mean,
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows of a site, and how well each tells its samples apart."""

    read: Tensor
    """[d_model, num_rows] float64"""
    bias: Tensor
    """[num_rows] float64"""
    write: Tensor
    """[num_rows, d_model] float64"""
    shrinkage: float
    d_prime: Tensor
    """On samples the row was not fitted on; 0 where there are too few to say.
    [num_rows] float64"""


Pairs = Sequence[tuple[int, int]]
"""Of each row: the group with its concept, and the group it is told from."""

Chunks = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]]
"""Goes through a harvest: numbers of some tokens [n], activations [n, d_model], groups
[n, num_groups] bool."""


def fit(
    moments: Moments,
    pairs: Pairs,
    shrinkages: Sequence[float],
) -> Fitted:
    """Return a row for each pair of groups, with the shrinkage that generalises best.

    A half of the samples is fitted, the other tells how far apart the read's two means
    are, in deviations; the mean over rows and halves decides. Then all are fitted.
    """
    halves = [moments.half(number) for number in range(HALVES)]
    both = torch.stack([h.samples[torch.tensor(pairs)].amin(1) for h in halves])
    known = both.amin(0) > 0
    tried = {}
    # Of equals, as where no row can be tried, the most cautious.
    for one in sorted(shrinkages, reverse=True):
        crossed = [
            _d_prime(halves[a], pairs, _reads(halves[1 - a], pairs, one))
            for a in range(HALVES)
        ]
        tried[one] = torch.stack(crossed).mean(0).where(known, 0.0)
    best = max(tried, key=lambda one: float(tried[one].sum()))
    everything = moments.all()
    write = _differences(everything, pairs)
    read = _reads(everything, pairs, best)
    read = read / (read * write.T).sum(0)
    told_from = everything.means[[other for _, other in pairs]]
    return Fitted(
        read=read,
        bias=-(read * told_from.T).sum(0),
        write=write,
        shrinkage=best,
        d_prime=tried[best],
    )


def leading(
    fitted: Fitted, rows: Sequence[int], found: GroupMoments, pairs: Pairs
) -> Fitted:
    """Return rows that read as these do, and lead to the second of each pair.

    What tells a dog from every other picture says when there is one; what tells it from
    pictures of nothing would fire at a cat.
    """
    return replace(
        fitted,
        read=fitted.read[:, rows],
        bias=fitted.bias[rows],
        write=_differences(found, pairs),
        d_prime=fitted.d_prime[rows],
    )


def _differences(found: GroupMoments, pairs: Pairs) -> Tensor:
    """Shapes: -> [num_rows, d_model]"""
    return found.means[[a for a, _ in pairs]] - found.means[[b for _, b in pairs]]


def _reads(found: GroupMoments, pairs: Pairs, shrinkage: float) -> Tensor:
    """Return unscaled reads. Shapes: -> [d_model, num_rows]"""
    return torch.linalg.solve(
        shrunk(found.covariance, shrinkage), _differences(found, pairs).T
    )


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return a covariance with a share of its diagonal alone.

    Shapes: [d_model, d_model] float64, same out
    """
    diagonal = covariance.diagonal()
    # A feature that never varies reads nothing, and must not divide by 0.
    diagonal = diagonal.clamp_min(1e-9 * float(diagonal.mean()) + 1e-30)
    return (1 - shrinkage) * covariance + shrinkage * diagonal.diag()


def _d_prime(found: GroupMoments, pairs: Pairs, read: Tensor) -> Tensor:
    """Shapes: read [d_model, num_rows] -> [num_rows]"""
    apart = (_differences(found, pairs) * read.T).sum(1)
    variance = ((found.covariance @ read) * read).sum(0)
    return apart / variance.clamp_min(1e-30).sqrt()
