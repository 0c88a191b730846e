# SPDX-License-Identifier: Apache-2.0
"""What the simple edits do to tokens, by the definitions they are known by."""

import pytest
import torch

from vllm_sauce.learning.rows.baselines import baseline
from vllm_sauce.learning.rows.fit import Moments, fit
from vllm_sauce.learning.rows.groups import OTHERS, Group
from vllm_sauce.learning.rows.settings import BASELINES
from vllm_sauce.sae import with_rows

D_MODEL, COUNT = 6, 4000
TOLD = Group(OTHERS, ("dog", "red"), ((0, 1), (2, 3)))


@pytest.fixture(scope="module")
def x_and_labels():
    drawn = torch.Generator().manual_seed(0)
    labels = torch.rand(COUNT, 2, generator=drawn) < torch.tensor([0.3, 0.5])
    mixing = torch.randn(D_MODEL, D_MODEL, generator=drawn, dtype=torch.float64)
    x = torch.randn(COUNT, D_MODEL, generator=drawn, dtype=torch.float64) @ mixing
    directions = torch.randn(2, D_MODEL, generator=drawn, dtype=torch.float64)
    return x + 5 + labels.double() @ directions, labels


@pytest.fixture(scope="module")
def moments(x_and_labels):
    x, labels = x_and_labels
    groups = torch.stack([labels, ~labels], 2).flatten(1)
    found = Moments(4, D_MODEL)
    found.add(x, torch.arange(COUNT), groups, torch.arange(COUNT) % 2)
    return found


def edited(kind, moments, x, concept):
    """Return tokens as a mask of the concept's two rows, gamma 0, leaves them."""
    one = baseline(kind, fit(moments, TOLD.pairs, (1e-9,)), moments.all(), TOLD)
    sae = with_rows(None, one.read, one.bias, one.write, ())
    z = (x @ sae.W_enc + sae.b_enc).relu()
    rows = [concept, concept + 2]
    return x - z[:, rows] @ sae.W_dec[rows]


@pytest.mark.parametrize("concept", [0, 1])
def test_after_leace_no_linear_read_tells_the_concept(moments, x_and_labels, concept):
    x, labels = x_and_labels
    label = labels[:, concept]
    after = edited("leace", moments, x, concept)
    before = x[label].mean(0) - x[~label].mean(0)
    left = after[label].mean(0) - after[~label].mean(0)
    assert left.norm() < 1e-5 * before.norm()
    # What is taken away has no mean: LEACE moves nothing on the whole.
    torch.testing.assert_close(after.mean(0), x.mean(0))


def test_difference_takes_all_to_the_mean_without(moments, x_and_labels):
    x, labels = x_and_labels
    label = labels[:, 0]
    direction = x[label].mean(0) - x[~label].mean(0)
    along = edited("difference", moments, x, 0) @ direction
    torch.testing.assert_close(along, (x[~label].mean(0) @ direction).expand(COUNT))


@pytest.mark.parametrize("kind", BASELINES)
def test_one_direction_is_changed(moments, x_and_labels, kind):
    x, _ = x_and_labels
    changed = edited(kind, moments, x, 0) - x
    assert torch.linalg.matrix_rank(changed, atol=1e-6) == 1


def test_a_drawn_direction_depends_on_the_name_alone(moments, x_and_labels):
    x, _ = x_and_labels
    one, other = (edited("random", moments, x, concept) - x for concept in (0, 1))
    again = edited("random", moments, x, 0) - x
    assert torch.equal(one, again) and not torch.allclose(one, other)
