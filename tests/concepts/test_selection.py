# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vllm_sauce.concepts.selection import share_difference, top_latents
from vllm_sauce.errors import ConfigError


def test_score_is_a_difference_of_shares():
    mu_pos, mu_neg = torch.tensor([3.0, 1.0]), torch.tensor([10.0, 30.0])
    want = torch.tensor([0.75 - 0.25, 0.25 - 0.75])
    torch.testing.assert_close(share_difference(mu_pos, mu_neg), want)


def test_score_of_silent_latents_is_zero():
    assert share_difference(torch.zeros(3), torch.zeros(3)).tolist() == [0, 0, 0]


def test_score_refuses_other_shapes():
    with pytest.raises(ConfigError, match="d_sae"):
        share_difference(torch.zeros(3), torch.zeros(4))


def test_top_latents_break_ties_by_index():
    scores = torch.tensor([1.0, 5.0, 5.0, 0.0, 5.0] * 50)
    assert top_latents(scores, 3) == (1, 2, 4)
    assert top_latents(torch.tensor([0.5, 2.0, 1.0]), 2) == (1, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_top_latents_refuse_k_out_of_range(k):
    with pytest.raises(ConfigError, match="k must be"):
        top_latents(torch.zeros(3), k)


def test_top_latents_refuse_nan():
    with pytest.raises(ConfigError, match="finite"):
        top_latents(torch.tensor([0.0, float("nan")]), 1)
