# SPDX-License-Identifier: Apache-2.0
"""Scores against values computed by hand."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import (
    Outcome,
    harmonic_mean,
    outcome,
    sure_forgetting,
    sure_loss,
)
from vllm_sauce.evaluation.questions import Kind, Part, Question


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


def test_scores_that_cannot_be_asked_do_not_count():
    scores = Outcome(UAg=0.8, UAd=None, IRA=None, CRA=0.8)
    assert round(scores.HM, 9) == 0.8
    assert scores.forgetting == 0.8
    assert scores.to_json()["IRA"] is None


def test_scores_by_hand():
    """Each sees its own questions only, and HM is computed before rounding."""
    asked = [
        (Part.UAG, Kind.NAME, 0.75),
        (Part.UAG, Kind.NAME, 0.0),
        (Part.UAD, Kind.NO, 1.0),
        (Part.IRA, Kind.NAME, 0.5),
        (Part.IRA, Kind.YES, 1.0),
        (Part.IRA, Kind.YES, 0.0),
        (Part.IRA, Kind.NO, 1.0),
        (Part.CRA_SHOWN, Kind.NAME, 1.0),
        (Part.CRA_SHOWN, Kind.NO, 0.5),
        (Part.CRA_OTHER, Kind.KEEP, 1.0),
        (None, Kind.NAME, 0.0),
    ]
    questions = [Question(prompt="?", part=p, kind=k) for p, k, _ in asked]
    found = outcome(questions, [right for *_, right in asked])
    assert found.values() == (0.625, 1.0, 0.625, 0.875)
    assert found.to_json()["HM"] == round(4 / (1 / 0.625 * 2 + 1 + 1 / 0.875), 4)
    with pytest.raises(ConfigError, match="without a single question"):
        outcome(questions[:2], [1.0, 1.0])


def test_a_malformed_answer_is_wrong_whatever_was_asked():
    def asked(part, kind):
        return Question(prompt="?", part=part, kind=kind, words=("x",))

    questions = [
        asked(Part.UAG, Kind.NAME),
        asked(Part.UAD, Kind.NO),
        asked(Part.IRA, Kind.NAME),
        asked(Part.CRA_OTHER, Kind.YES),
    ]
    # Forgotten, denied, kept, kept: all as it should be.
    right = [0.0, 1.0, 1.0, 1.0]
    good = outcome(questions, right)
    assert (good.HM, good.malformed) == (1.0, 0.0)
    spoilt = outcome(questions, right, [True] * 4)
    assert spoilt.values() == (0.0, 0.0, 0.0, 0.0)
    assert spoilt.malformed == 1.0


def asked(*parts, kind=Kind.NAME):
    """Return a question of each part."""
    return [Question(prompt="?", part=part, kind=kind) for part in parts]


def test_of_few_answers_little_forgetting_is_sure():
    """Wilson's lower bound at one standard error, by hand."""
    four = asked(*[Part.UAG] * 4)
    all_gone = Outcome(UAg=1.0, UAd=None, IRA=None, CRA=1.0)
    # (1 + 1/8 - 1/8) / (1 + 1/4)
    assert sure_forgetting(all_gone, four) == pytest.approx(0.8)
    many = asked(*[Part.UAG] * 400, *[Part.UAD] * 400)
    scores = Outcome(UAg=0.9, UAd=0.95, IRA=None, CRA=1.0)
    # The error of 0.9 is 0.015, and the smaller of the two counts.
    assert sure_forgetting(scores, many) == pytest.approx(0.884, abs=1e-3)
    few_denials = asked(*[Part.UAG] * 400, *[Part.UAD] * 4)
    assert sure_forgetting(all_gone, few_denials) > 0.99
    denied = Outcome(UAg=1.0, UAd=1.0, IRA=None, CRA=1.0)
    assert sure_forgetting(denied, few_denials) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("right", "lost"),
    [
        ((1, 1, 1, 1), 0.0),
        # 1/4 lost, and an error of as much.
        ((0, 1, 1, 1), 0.0),
        # 2/4 - sqrt(2) / 4
        ((0, 0, 1, 1), 0.1464),
        ((0, 0, 0, 0), 0.5),
    ],
)
def test_a_single_lost_answer_tells_nothing(right, lost):
    questions = asked(*[Part.IRA] * 4, Part.CRA_OTHER)
    found = sure_loss(questions, [1.0] * 5, [*map(float, right), 1.0])
    assert found == pytest.approx(lost, abs=1e-4)
    # Spoilt is lost, too.
    broken = [*(not known for known in right), False]
    assert sure_loss(questions, [1.0] * 5, [1.0] * 5, broken) == found


def test_what_was_not_known_before_is_no_loss_and_gains_make_up_for_losses():
    questions = asked(*[Part.CRA_SHOWN] * 2, *[Part.CRA_OTHER] * 8)
    assert sure_loss(questions, [0.0] * 10, [0.0] * 10) == 0.0
    # Half of CRA is of two answers here: both lost are 1/2 - sqrt(2) / 4.
    before, after = [1.0] * 10, [0.0] * 2 + [1.0] * 8
    assert sure_loss(questions, before, after) == pytest.approx(0.1464, abs=1e-4)
    better = [0.0, 1.0, *before[2:]], [1.0, 0.0, *before[2:]]
    assert sure_loss(questions, *better) == 0.0
