# SPDX-License-Identifier: Apache-2.0
"""Which edit is chosen, and what is asked of an engine; the engine is a list here."""

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
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.evaluation.metrics import Outcome
from vllm_sauce.evaluation.questions import Kind, Part, Question
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner, Sure, Trial
from vllm_sauce.learning.calibration.search import _distinct, _prune


def test_settings_with_equal_masks_are_asked_once(examiner):
    alike = [setting(), setting(ranking="rate"), setting(ranking="file")]
    found = examiner.trials({"dog": [*alike, setting(k=2)]}, 1.0)["dog"]
    assert len(examiner.asker.asked[-1]) == 2 * 2  # two masks, two questions
    assert [found[one].setting for one in alike] == alike
    examiner.trials({"dog": alike}, 1.0)
    assert examiner.asker.asked[-1] == []


def test_finalists_differ_in_what_they_do(examiner):
    trials = {
        one: trial(objective, one)
        for one, objective in (
            (setting(), 0.9),
            (setting(ranking="rate"), 0.8),
            (setting(k=2), 0.7),
            (setting(action="scale -4"), 0.6),
        )
    }
    best = _distinct(examiner, "dog", trials, 2)
    assert best == [setting(), setting(k=2)]


def test_the_floors_come_before_the_merit(examiner):
    """The stronger ones lose too much: one of IRA, one a single other concept."""
    kept = trial(0.5, setting(), hm=0.85)
    greedy = trial(0.9, setting(k=2), hm=0.95, iras=0.9)
    harms = trial(0.8, setting(action="scale -4"), hm=0.95, worst=("cat", 0.5))
    assert choose(examiner, [greedy, harms, kept]) is kept
    assert choose(examiner, [greedy, harms]) is greedy
    examiner.config = replace(CONFIG, retain_floor=0.2)
    assert choose(examiner, [greedy, harms, kept]) is greedy


def test_to_forget_comes_before_the_floors(examiner):
    """What is not forgotten is refused by every server, whatever it keeps."""
    mild = trial(0.9, setting(), hm=0.7)
    strong = trial(0.2, setting(k=2), hm=0.9, iras=0.5)
    stronger = trial(0.1, setting(action="scale -4"), hm=1.0, iras=0.1)
    assert choose(examiner, [mild, strong, stronger]) is strong
    # Of what forgets too little what keeps to the floors comes first, as ever.
    examiner.config = replace(CONFIG, forget_floor=1.0)
    assert choose(examiner, [mild, strong]) is mild


def test_what_forgets_enough_need_not_ruin_the_rest_to_be_sure(examiner):
    """Fourteen of sixteen are less sure than the floor; half of everything is more."""
    enough = trial(0.9, setting(), hm=0.875, sure=Sure(forgetting=0.775, loss=0.0))
    ruins = trial(0.5, setting(k=2), hm=1.0, iras=0.5)
    assert choose(examiner, [enough, ruins]) is enough


def test_what_few_answers_say_is_no_reason_for_a_milder_edit(examiner):
    """One lost answer of few; and as many forgotten as luck could have."""
    lucky = trial(0.9, setting(), hm=0.9, sure=Sure(forgetting=0.75, loss=0.0))
    strong = trial(
        0.8, setting(k=2), hm=1.0, iras=0.9, sure=Sure(forgetting=0.9, loss=0.0)
    )
    assert choose(examiner, [lucky, strong]) is strong


def test_what_forgets_most_is_best_within_the_floors(examiner):
    forgets = trial(0.5, setting(), hm=0.95, iras=0.5)
    balanced = trial(0.9, setting(k=2), hm=0.9)
    examiner.config = replace(CONFIG, retain_floor=1.0)
    assert choose(examiner, [forgets, balanced]) is forgets


def asked_of(needed):
    """Return an examiner of 16 latents whose first question needs some bands."""
    config = replace(CONFIG, k=(4, 8, 16), retain_floor=0.4)

    def says(ask):
        ranks = {name.split()[3] for name in ask.forget}
        return "cat" if needed <= ranks and ask.question.prompt == "dog?" else "dog"

    class Asked(Questions):
        def questions(self, name, positives, negatives, watched=0):
            first, other = super().questions(name, positives, negatives, watched)
            return [replace(first, prompt="dog?"), other]

    return Examiner(Engine(says), {"dog": choices_of(16, config)}, Asked(), config)


@pytest.mark.parametrize(
    ("needed", "left"),
    [
        ({"0-4"}, {"0-4"}),
        ({"8-16"}, {"8-16"}),
        ({"0-4", "8-16"}, {"0-4", "8-16"}),
        ({"0-4", "4-8", "8-16"}, {"0-4", "4-8", "8-16"}),
    ],
)
def test_latents_are_dropped_that_nothing_needs(needed, left):
    examiner = asked_of(needed)
    whole = setting(k=16)
    best = examiner.trials({"dog": [whole]}, 1.0)["dog"][whole]
    assert best.scores.UAg == 1.0
    kept = _prune(examiner, {"dog": best}, lambda what, done, total: None)["dog"]
    parts = examiner.choices["dog"].parts(kept[-1].setting)
    assert {name.split()[3] for name in parts} == left
    assert kept[0] is best and kept[-1].scores.UAg == 1.0


@pytest.mark.parametrize(("iras", "taken"), [(1.0, True), (0.5, False)])
def test_what_is_dropped_must_not_cost_a_floor(iras, taken):
    """Even where the smaller edit forgets more and pleases the search more."""
    examiner = asked_of(set())
    examiner.config = replace(examiner.config, retain_floor=0.1)
    examiner.base = lambda name: Outcome(UAg=0.0, UAd=0.0, IRA=1.0, CRA=1.0)
    smaller: list[Trial] = []

    def trials(wanted, share, progress):
        found = {
            one: trial(0.95, one, hm=0.95, iras=iras) for one in wanted.get("dog", ())
        }
        smaller.extend(found.values())
        return {"dog": found} if found else {}

    examiner.trials = trials
    best = trial(0.9, setting(k=16), hm=0.9)
    kept = _prune(examiner, {"dog": best}, lambda what, done, total: None)["dog"]
    assert smaller
    assert kept == ([best, *smaller] if taken else [best])


def test_an_edit_of_nothing_is_never_chosen():
    """Where there are two sites, each may be off; both off is no edit."""
    one = choices_of(2)
    sites = dict.fromkeys(("vision", "decoder.1"), one.latents["vision"])
    both = EditChoices.of("dog", sites, CONFIG)
    examiner = Examiner(Engine(), {"dog": both}, Questions(), CONFIG)
    found = examiner.trials({"dog": [()]}, 1.0)["dog"]
    assert found[()].objective == -math.inf
    assert _distinct(examiner, "dog", found, 3) == []


def test_a_lost_concept_costs_what_lies_beyond_its_floor(examiner):
    """Through the examiner: the watched question's answer is lost under the edit."""
    item = Question(
        part=Part.WATCHED,
        kind=Kind.NAME,
        prompt="?",
        picture=None,
        words=("cat",),
        about="cat",
    )
    examiner.questions["dog"].append(item)
    examiner.plain["dog"].append(Answer("cat", (7,), {(7,): -0.1}))
    found = examiner.trials({"dog": [setting()]}, 1.0)["dog"][setting()]
    assert found.worst == ("cat", 1.0)
    free = replace(CONFIG, worst_floor=1.0)
    lenient = Examiner(Engine(), {"dog": examiner.choices["dog"]}, Questions(), free)
    lenient.questions["dog"].append(item)
    lenient.plain["dog"].append(examiner.plain["dog"][-1])
    spared = lenient.trials({"dog": [setting()]}, 1.0)["dog"][setting()]
    # One lost example of one says no more than one of two.
    assert spared.objective - found.objective == pytest.approx(
        0.5 * (0.5 - CONFIG.worst_floor)
    )
    # The search itself does not ask for it.
    blind = examiner.trials({"dog": [setting()]}, 1.0, watched=False)["dog"]
    assert blind[setting()].worst == ("", 0.0)
    assert blind[setting()].objective == spared.objective


def test_the_search_hands_on_different_latents(examiner):
    """Else all that it hands on were the last coordinate's values."""
    actions = ("scale 0", "scale -4")
    trials = {
        one: trial(1.0 - 0.1 * place, one)
        for place, one in enumerate(
            setting(k=k, action=action) for k in (2, 1) for action in actions
        )
    }
    found = _distinct(examiner, "dog", trials, 3, alike=1)
    others = [setting(k=2, action="scale -4")]
    assert found == [setting(k=2), setting(k=1), *others]


@pytest.mark.parametrize(
    "wrong",
    [
        {"retain_floor": 1.5},
        {"worst_floor": -0.1},
        {"watched": -1},
        {"screen": 0.0},
        {"passes": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(CONFIG, **wrong)
