# SPDX-License-Identifier: Apache-2.0
"""Rows of known distributions: what is read, written, and how it generalises."""

import torch

from vllm_sauce.learning.rows.fit import Moments, fit, leading

D_MODEL, ROWS_OF_SAMPLE = 16, 4


def drawn(num_samples=400, *, apart=2.0, seed=0):
    """Samples of three concepts, rows correlated; also what they were drawn with."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D_MODEL, D_MODEL, generator=rng) / D_MODEL**0.5
    mixing += torch.eye(D_MODEL)
    has = torch.rand(num_samples, 3, generator=rng) < 0.4
    directions = apart * torch.randn(3, D_MODEL, generator=rng)
    offset = 3 * torch.randn(D_MODEL, generator=rng)
    noise = torch.randn(num_samples, ROWS_OF_SAMPLE, D_MODEL, generator=rng)
    x = offset + noise @ mixing + (has.float() @ directions)[:, None]
    groups = torch.stack([has, ~has], 2).flatten(1)
    return x, groups


def counted(x, groups, batch=37):
    moments = Moments(groups.shape[1], D_MODEL)
    half = torch.arange(len(x)) % 2
    for start in range(0, len(x), batch):
        rows = x[start : start + batch]
        sample = torch.arange(len(rows)).repeat_interleave(ROWS_OF_SAMPLE)
        part = slice(start, start + batch)
        moments.add(rows.flatten(0, 1), sample, groups[part], half[part])
    return moments


PAIRS = ((0, 1), (2, 3), (4, 5))


def test_moments_are_those_of_all_rows_at_once():
    x, groups = drawn()
    found = counted(x, groups)
    every = found.all()
    flat = x.flatten(0, 1).double()
    torch.testing.assert_close(every.covariance, torch.cov(flat.T, correction=0))
    assert every.samples.tolist() == groups.sum(0).tolist()
    odd = torch.arange(len(x)) % 2 == 1
    for group in range(groups.shape[1]):
        mine = x[groups[:, group]].double().mean((0, 1))
        torch.testing.assert_close(every.means[group], mine)
        mine = x[groups[:, group] & odd].double().mean((0, 1))
        torch.testing.assert_close(found.half(1).means[group], mine)


def test_a_row_is_the_linear_discriminant():
    """sklearn's definition, solved here by the inverse of the covariance."""
    x, groups = drawn()
    found = fit(counted(x, groups), PAIRS, (0.01,))
    flat = x.flatten(0, 1).double()
    covariance = torch.cov(flat.T, correction=0)
    shrunk = 0.99 * covariance + 0.01 * covariance.diagonal().diag()
    for number in range(3):
        has = groups[:, 2 * number]
        p, m = (x[mine].double().mean((0, 1)) for mine in (has, ~has))
        w = torch.linalg.inv(shrunk) @ (p - m)
        w /= w @ (p - m)
        torch.testing.assert_close(found.read[:, number], w)
        torch.testing.assert_close(found.write[number], p - m)
        # What is left when all is taken away has nothing to read.
        at = torch.stack([p, m, p - found.write[number]])
        z = at @ found.read[:, number] + found.bias[number]
        torch.testing.assert_close(z, torch.tensor([1.0, 0.0, 0.0]).double())


def test_the_shrinkage_is_what_unseen_samples_want():
    few, many = drawn(6, apart=0.5, seed=3), drawn(4000, apart=0.5, seed=3)
    grid = (0.001, 0.03, 0.3, 1.0)
    cautious, bold = (fit(counted(*one), PAIRS, grid) for one in (few, many))
    assert cautious.shrinkage > bold.shrinkage
    # Overfitting would show as rows that tell those few apart far too well.
    assert float(cautious.d_prime.mean()) < 1.5 * float(bold.d_prime.mean())
    assert float(bold.d_prime.min()) > 0


def test_a_concept_of_one_sample_is_fitted_and_not_judged():
    x, groups = drawn()
    groups[:, 0] = False
    groups[7, 0] = True
    found = fit(counted(x, groups), PAIRS, (0.01, 0.1))
    assert float(found.d_prime[0]) == 0 < float(found.d_prime[1])
    assert bool(found.read.isfinite().all())


def test_towards_absence_is_read_as_towards_others():
    """The first two concepts are a domain; without both there is none of it."""
    x, groups = drawn()
    none = groups[:, [1, 3]].all(1)
    moments = counted(x, torch.cat([groups, none[:, None]], 1))
    found = fit(moments, PAIRS, (0.01,))
    led = leading(found, [0, 1], moments.all(), ((0, 6), (2, 6)))
    torch.testing.assert_close(led.read, found.read[:, :2])
    torch.testing.assert_close(led.bias, found.bias[:2])
    for number in range(2):
        has, absent = groups[:, 2 * number], x[none].double().mean((0, 1))
        mean = x[has].double().mean((0, 1))
        z = mean @ led.read[:, number] + led.bias[number]
        torch.testing.assert_close(mean - z * led.write[number], absent)


def test_a_feature_that_never_varies_is_no_reason_to_fail():
    x, groups = drawn()
    x[..., 5] = 2.0
    found = fit(counted(x, groups), PAIRS, (0.01,))
    assert bool(found.read.isfinite().all())
