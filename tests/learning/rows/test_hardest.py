# SPDX-License-Identifier: Apache-2.0
"""Rows that are fitted on the tokens most like their concept's."""

import pytest
import torch

from vllm_sauce.learning.rows import hardest
from vllm_sauce.learning.rows.fit import Moments, fit, shrunk
from vllm_sauce.learning.rows.hardest import Top, sharpen

D, OWN, NEIGHBOURS, REST = 12, 200, 400, 6000


def world(seed):
    """Tokens about to say one of two countries, and many that say none.

    What tells both from the rest is large, and varies; what tells the first from the
    second is small, and noisy in all that say none.
    """
    draw = torch.Generator().manual_seed(seed)
    country = torch.tensor([0] * OWN + [1] * NEIGHBOURS + [2] * REST)
    x = torch.randn(len(country), D, generator=draw)
    x[country < 2] *= 0.25
    x[country < 2, 0] = 16 * x[country < 2, 0] + 8
    x[country == 0, 1] += 1
    x[country == 1, 1] -= 1
    order = torch.randperm(len(x), generator=draw)
    groups = torch.stack([country == 0, country != 0], 1)
    return x[order], groups[order], country[order]


def rows(x, groups):
    moments = Moments(2, D)
    moments.add(x, torch.arange(len(x)), groups, torch.arange(len(x)) % 2)
    first = fit(moments, ((0, 1),), (0.01,))

    def chunks():
        for at in torch.arange(len(x)).split(1000):
            yield at, x[at], groups[at]

    whole = shrunk(moments.all().covariance, 0.01)
    return first, sharpen(first, ((0, 1),), whole, chunks)


def test_what_is_alike_is_told_apart():
    first, sharp = rows(*world(0)[:2])
    x, groups, country = world(1)

    def fires_at_neighbours(row):
        z = (x.double() @ row.read + row.bias)[:, 0]
        return float((z[country == 1] > 0.5).double().mean())

    assert fires_at_neighbours(first) > 0.5
    assert fires_at_neighbours(sharp) < 0.5 * fires_at_neighbours(first)


def test_the_read_is_1_at_the_mean_and_the_edit_leaves_0():
    x, groups, _ = world(0)
    _, sharp = rows(x, groups)
    mine = x[groups[:, 0]].double()
    assert len(mine) <= hardest.OWN
    read, write = sharp.read[:, 0], sharp.write[0]
    assert float(mine.mean(0) @ read + sharp.bias[0]) == pytest.approx(1)
    assert float(write @ read) == pytest.approx(1)
    left = mine.mean(0) - write
    assert float(left @ read + sharp.bias[0]) == pytest.approx(0, abs=1e-9)


def test_it_does_not_matter_in_which_pieces_tokens_come():
    draw = torch.Generator().manual_seed(0)
    score, x = torch.rand(50, generator=draw), torch.rand(50, 3, generator=draw)
    number = torch.arange(50)
    tops = []
    for size in (7, 50):
        top = Top(5)
        for at in number.split(size):
            top.add(score[at], at, x[at])
        tops.append(top.kept)
    best = score.argsort(descending=True)[:5]
    for kept in tops:
        assert kept[1].tolist() == best.tolist()
        assert torch.equal(kept[2], x[best])
