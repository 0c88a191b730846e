# SPDX-License-Identifier: Apache-2.0
"""Rows told apart by logistic regression: the optimum, its scale, what it is worth."""

import pytest
import torch
from torch.nn.functional import softplus

from tests.learning.rows.test_fit import PAIRS, ROWS_OF_SAMPLE, counted, drawn
from vllm_sauce.learning.rows import logistic
from vllm_sauce.learning.rows.fit import fit, shrunk
from vllm_sauce.learning.rows.logistic import told_by_logits


def refit(x, groups, batch=53):
    """Return the discriminants of some samples, and what logits make of them."""
    found = counted(x, groups)
    fitted = fit(found, PAIRS, (0.01,))
    rows = x.flatten(0, 1)
    of_rows = groups.repeat_interleave(ROWS_OF_SAMPLE, 0)

    def chunks():
        for start in range(0, len(rows), batch):
            part = slice(start, start + batch)
            yield torch.arange(len(rows))[part], rows[part], of_rows[part]

    moments = found.all()
    whole = shrunk(moments.covariance, fitted.shrinkage)
    return fitted, told_by_logits(fitted, PAIRS, moments, whole, chunks)


def uneven(num_samples=4000, seed=0):
    """Samples of rare concepts, which differ in what the others are alike in."""
    x = drawn(num_samples, apart=0.0, seed=seed)[0]
    rng = torch.Generator().manual_seed(seed)
    has = torch.rand(num_samples, 3, generator=rng) < 0.05
    x -= x.mean((0, 1))
    x[..., :3] *= 0.1
    much = 0.5 + 2 * torch.randn(num_samples, 3, generator=rng)
    x[..., :3] += (has * much)[:, None]
    x[..., 3:6] += 8 * has[:, None].float()
    return x, torch.stack([has, ~has], 2).flatten(1)


@pytest.mark.parametrize(("steps", "left"), [(200, 1e-3), (logistic.ITERATIONS, 0.02)])
def test_nothing_near_it_has_a_smaller_loss(monkeypatch, steps, left):
    """By autograd, a row at a time; the offset is the best for its direction."""
    monkeypatch.setattr(logistic, "ITERATIONS", steps)
    x, groups = uneven(300)
    _, found = refit(x, groups)
    moments = counted(x, groups).all()
    whole = shrunk(moments.covariance, 0.01)
    for number, (has, lacks) in enumerate(PAIRS):
        yes, no = (x[groups[:, at]].flatten(0, 1).double() for at in (has, lacks))

        def loss(read, offset, yes=yes, no=no):
            size = logistic.RIDGE * (read @ whole @ read)
            missed = softplus(-(yes @ read + offset)).mean()
            return missed + softplus(no @ read + offset).mean() + size

        # What is returned is scaled: the logits are this much steeper.
        steep = torch.ones(1, dtype=torch.double).requires_grad_()
        offset = torch.zeros(1, dtype=torch.double).requires_grad_()
        best = torch.optim.LBFGS([steep, offset], max_iter=200, lr=0.5)

        def at(steep=steep, offset=offset, number=number, loss=loss):
            steep.grad = offset.grad = None
            value = loss(steep * found.read[:, number], offset)
            value.backward()
            return value

        best.step(at)
        read = (steep.detach() * found.read[:, number]).requires_grad_()
        nothing = torch.zeros_like(read).requires_grad_()
        slopes = [
            torch.autograd.grad(loss(at, offset.detach()), at)[0].norm()
            for at in (read, nothing)
        ]
        assert slopes[0] < left * slopes[1]


def test_it_begins_as_the_discriminant(monkeypatch):
    monkeypatch.setattr(logistic, "ITERATIONS", 0)
    before, found = refit(*uneven(300))
    torch.testing.assert_close(found.read, before.read)
    torch.testing.assert_close(found.bias, before.bias)


def test_a_row_is_0_without_its_concept_and_1_with_it():
    x, groups = uneven()
    before, found = refit(x, groups)
    torch.testing.assert_close(found.write, before.write)
    for number, (has, lacks) in enumerate(PAIRS):
        p, m = (x[groups[:, at]].double().mean((0, 1)) for at in (has, lacks))
        at = torch.stack([p, m, p - found.write[number]])
        z = at @ found.read[:, number] + found.bias[number]
        torch.testing.assert_close(z, torch.tensor([1.0, 0.0, 0.0]).double())


def test_where_both_are_spread_alike_it_is_the_discriminant():
    before, found = refit(*drawn(4000, apart=0.5))
    alike = torch.cosine_similarity(before.read, found.read, 0)
    assert float(alike.min()) > 0.98


@pytest.mark.parametrize(("saying", "stays"), [(4, False), (3, True)])
def test_where_tokens_say_nothing_of_their_sample_it_stays_the_discriminant(
    saying, stays
):
    """The last of each sample's tokens are alike in all samples, but for ``saying``."""
    x, groups = uneven()
    x[:, saying:] = drawn(len(x), apart=0.0, seed=5)[0][:, saying:]
    before, found = refit(x, groups)
    assert torch.equal(before.read, found.read) == stays


def test_how_a_harvest_is_cut_changes_nothing():
    x, groups = uneven(300)
    (_, one), (_, other) = (refit(x, groups, batch) for batch in (7, 1200))
    torch.testing.assert_close(one.read, other.read, rtol=1e-3, atol=1e-4)


def test_a_feature_that_never_varies_is_no_reason_to_fail():
    x, groups = uneven(300)
    x[..., 5] = 2.0
    _, found = refit(x, groups)
    assert bool(found.read.isfinite().all())


@pytest.mark.parametrize("few", [1, 3])
def test_few_samples_are_fitted(few):
    """A concept of one sample: what is read there says little, but is a number."""
    x, groups = uneven(300)
    groups[:, 0] = False
    groups[:few, 0], groups[:few, 1] = True, False
    _, found = refit(x, groups)
    assert bool(found.read.isfinite().all() and found.bias.isfinite().all())
