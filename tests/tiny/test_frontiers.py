# SPDX-License-Identifier: Apache-2.0
"""The tables made of a calibration: its frontier, and ingredients taken away."""

from dataclasses import replace

from tiny.ablation import VARIANTS, alone
from tiny.frontiers import best_known, most_forgetting
from vllm_sauce.learning.calibration.setting import Action, SiteSetting

A = SiteSetting(
    site="vision",
    ranking="share",
    k=4,
    gate=0.99,
    action=Action.parse("clamp 1"),
    without=(2,),
)
B = SiteSetting(
    site="decoder.1", ranking="crisp", k=8, gate=0.0, action=Action.parse("scale -4")
)


def trial(setting, share, forgetting, keeping):
    return {
        "setting": setting,
        "share": share,
        "forgetting": forgetting,
        "keeping": keeping,
    }


def test_a_setting_is_judged_by_the_most_questions_it_was_asked():
    few, all_ = trial({"k": 4}, 0.3, 1.0, 1.0), trial({"k": 4}, 1.0, 0.8, 0.9)
    other = trial({"k": 8}, 0.3, 0.5, 0.99)
    found = best_known([all_, other, few])
    assert len(found) == 2 and all_ in found and other in found


def test_what_keeps_less_than_the_floor_does_not_count():
    tried = [trial({}, 1, 0.9, 0.8), trial({}, 1, 0.6, 0.95), trial({}, 1, 0.5, 0.96)]
    assert most_forgetting(tried, 0.0) == 0.9
    assert most_forgetting(tried, 0.95) == 0.6
    assert most_forgetting(tried, 0.99) == 0.0


def test_one_ingredient_is_taken_away_and_the_rest_left():
    setting = (A, B)
    assert VARIANTS["as calibrated"](setting) == setting
    assert VARIANTS["no gate"](setting) == (replace(A, gate=0.0), B)
    assert VARIANTS["not pruned"](setting)[0].without == ()
    assert alone("vision")(setting) == (A,)
    assert alone("decoder.1")((A,)) == (A,)
