# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vllm_sauce.concepts.selection import share_difference
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
