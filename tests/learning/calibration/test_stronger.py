# SPDX-License-Identifier: Apache-2.0
"""What the search takes for enough and is not: stronger edits, a step at a time."""

import math
from dataclasses import replace

import pytest

from tests.learning.calibration.examined import (
    CONFIG,
    Engine,
    Questions,
    choices_of,
    choose,
    setting,
    trial,
)
from vllm_sauce.evaluation.questions import Part
from vllm_sauce.learning.calibration.examiner import Examiner
from vllm_sauce.learning.calibration.search import _strengthen, calibrate


def strengthened(examiner, start, found):
    """Return what is tried from a start; ``found``: forgetting by k and action."""
    asked = []

    def trials(wanted, share, progress):
        asked.append(wanted.get("dog", []))
        return {
            name: {
                one: trial(0.5, one, hm=found[one[0].k, one[0].action.text])
                for one in some
            }
            for name, some in wanted.items()
        }

    examiner.trials = trials
    best = trial(0.9, start, hm=found[start[0].k, start[0].action.text])
    tried = _strengthen(examiner, {"dog": best}, lambda what, done, total: None)
    return tried["dog"], [one for some in asked for one in some]


def test_what_is_not_forgotten_is_edited_more_strongly(examiner):
    """A step along an axis, then from the better of these: until it is forgotten."""
    found = {
        (1, "scale 0"): 0.3,
        (2, "scale 0"): 0.5,
        (1, "scale -4"): 0.7,
        (2, "scale -4"): 0.9,
    }
    tried, asked = strengthened(examiner, setting(), found)
    assert asked == [
        setting(k=2),
        setting(action="scale -4"),
        setting(k=2, action="scale -4"),
    ]
    assert choose(examiner, tried).setting == setting(k=2, action="scale -4")


def test_what_is_forgotten_is_left_as_it_is(examiner):
    tried, asked = strengthened(examiner, setting(), {(1, "scale 0"): 0.8})
    assert len(tried) == 1 and asked == []


def test_a_step_that_is_of_no_use_alone_is_gone_on_from(examiner):
    """Each of two answers for half: the best so far is taken, if none is enough."""
    found = {
        (1, "scale 0"): 0.5,
        (2, "scale 0"): 0.4,
        (1, "scale -4"): 0.5,
        (2, "scale -4"): 0.5,
    }
    tried, asked = strengthened(examiner, setting(), found)
    assert asked[-1] == setting(k=2, action="scale -4") and len(asked) == 3
    assert choose(examiner, tried).setting == setting()


def test_of_steps_of_the_same_use_the_stronger_is_gone_on_from(examiner):
    config = replace(CONFIG, k=(1, 2, 4))
    engine, choices = Engine(), {"dog": choices_of(4, config)}
    examiner = Examiner(engine, choices, Questions(), config)
    every = [(k, action) for k in (1, 2, 4) for action in ("scale 0", "scale -4")]
    _, asked = strengthened(examiner, setting(), dict.fromkeys(every, 0.5))
    first = [setting(k=2), setting(action="scale -4")]
    assert asked == [
        *first,
        setting(k=2, action="scale -4"),
        setting(k=4, action="scale -4"),
    ]


class Four(Questions):
    """Four questions of each part that a score needs, numbered."""

    def questions(self, name, positives, negatives, watched=0):
        return [
            replace(one, prompt=f"{number}?")
            for one in super().questions(name, positives, negatives, watched)
            for number in range(4)
        ]


def test_what_the_search_takes_for_enough_is_made_stronger(choices):
    """Its quarter of the questions is forgotten mildly, and costs what is strong."""

    def says(ask):
        strong = any("scale -4" in name for name in ask.forget)
        asked = ask.question.part, ask.question.prompt
        if asked[0] is Part.UAG:
            gone = bool(ask.forget) and (strong or asked[1] == "0?")
        else:
            gone = strong and asked[1] == "0?"
        return "cat" if gone else "dog"

    config = replace(CONFIG, screen=0.25, finalists=1, prune=False)
    examiner = Examiner(Engine(says), {"dog": choices}, Four(), config)
    found = calibrate(examiner, {})["dog"]
    (chosen,) = found.best.setting
    assert chosen.action.text == "scale -4"
    assert found.best.scores.UAg == 1.0 and found.best.scores.CRA == 0.75
    mild = [t for t in found.trials if t.share == 1.0 and t.scores.UAg == 0.25]
    assert mild and not found.within_floor


def test_what_is_sure_is_of_answers_what_is_searched_of_their_probabilities(choices):
    """Everything is lost, and each word is as probable as before (0.9)."""
    config = replace(CONFIG, soft=0.5)
    examiner = Examiner(
        Engine(lambda ask: "cat" if ask.forget else "dog"),
        {"dog": choices},
        Four(),
        config,
    )
    found = examiner.trials({"dog": [setting()]}, 1.0)["dog"][setting()]
    # Wilson's bound of four of four; 1 - sqrt(4) / 4.
    assert found.sure.forgetting == pytest.approx(0.8)
    assert found.sure.loss == pytest.approx(0.5)
    right = 0.5 * math.exp(-0.1)  # of 0.5 + that before
    HM = 2 / (1 / (1 - right) + 1 / right)
    # Half of each answer is lost, and half of that is sure.
    lost = 0.5 - 0.5 * 0.5
    assert found.objective == pytest.approx(HM - 2 * (lost - config.retain_floor))
