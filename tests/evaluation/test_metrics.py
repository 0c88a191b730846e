# SPDX-License-Identifier: Apache-2.0
"""Scores against values computed by hand."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import Scores, Share, harmonic_mean, mean_share


def test_harmonic_mean_of_known_values():
    assert harmonic_mean([1, 1, 1, 1]) == 1
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.9, 0.9, 0.9, 0.3]) == pytest.approx(0.6)


def test_harmonic_mean_is_zero_when_one_share_is():
    assert harmonic_mean([1, 1, 1, 0]) == 0


@pytest.mark.parametrize("values", [[], [0.5, -0.1]])
def test_harmonic_mean_refuses(values):
    with pytest.raises(ConfigError):
        harmonic_mean(values)


def test_scores_know_mean_and_weakest():
    scores = Scores(UAg=0.9, UAd=0.9, IRA=0.9, CRA=0.3)
    assert pytest.approx(0.6) == scores.HM
    assert scores.weakest == 0.3
    assert scores.to_json() == {
        "UAg": 0.9,
        "UAd": 0.9,
        "IRA": 0.9,
        "CRA": 0.3,
        "HM": 0.6,
    }


def test_shares_weigh_equally_whatever_they_counted():
    many, few, none = Share(), Share(), Share()
    for hit in (1, 1, 1, 0):
        many.add(hit)
    few.add(0.25)
    assert many.value == 0.75
    assert mean_share([many, few, none]) == 0.5
    with pytest.raises(ConfigError):
        mean_share([none])
