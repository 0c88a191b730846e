# SPDX-License-Identifier: Apache-2.0
"""Which edit is chosen, and what is asked of an engine; the engine is a list here."""

from dataclasses import replace

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.calibrate import (
    CalibrationConfig,
    Examiner,
    Trial,
    _choose,
    _distinct,
)
from vllm_sauce.evaluation.candidate_engine import CandidateEngine, Reading
from vllm_sauce.evaluation.edit_choices import EditChoices
from vllm_sauce.evaluation.questionnaire import (
    Item,
    Kind,
    Outcome,
    Part,
    Questionnaire,
)
from vllm_sauce.evaluation.selection_file import RankedLatent, SelectedConcept

CONFIG = CalibrationConfig(
    k=(1, 2), gates=(0.0,), actions=("scale 0", "scale -4"), soft=0.0, screen=1.0
)


@pytest.fixture
def choices():
    """Two scores that rank alike: their settings differ in name alone."""
    latents = [
        RankedLatent(
            latent=latent,
            scores={"share": -float(i), "rate": -float(i)},
            mean_acts=(1.0, 0.1),
            firing_rate=(0.5, 0.1),
            max_acts=(4.0, 2.0),
        )
        for i, latent in enumerate((5, 3))
    ]
    found = SelectedConcept(domain="d", num_samples=(9, 9), latents=latents)
    return EditChoices("dog", {"vision": found}, CONFIG.k, CONFIG.gates, CONFIG.actions)


class Engine(CandidateEngine):
    """Answers every probe alike and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def answer_tokens(self, words):
        return (7,)

    def evaluate(self, probes, progress=lambda done, total: None):
        self.asked.append(list(probes))
        return [Reading({7: -0.1}, (7,), "dog") for _ in probes]


class Questions(Questionnaire):
    """One question of each part that a score needs."""

    def __init__(self):
        pass

    def items(self, name, positives, negatives, watched=0):
        return [
            Item(part=part, kind=Kind.NAME, prompt="?", picture=None, words=("dog",))
            for part in (Part.UAG, Part.CRA_OTHER)
        ]


@pytest.fixture
def examiner(choices):
    return Examiner(Engine(), {"dog": choices}, Questions(), CONFIG)


def setting(**values):
    start = {"sites": ("vision",), "ranking": "share", "k": 1, "gate": 0.0}
    return tuple({**start, "action": "scale 0", **values}.items())


def test_settings_with_equal_masks_are_asked_once(examiner):
    alike = [setting(), setting(ranking="rate"), setting(ranking="file")]
    found = examiner.trials({"dog": [*alike, setting(k=2)]}, 1.0)["dog"]
    assert len(examiner.engine.asked[-1]) == 2 * 2  # two masks, two questions
    assert [found[one].setting for one in alike] == alike
    examiner.trials({"dog": alike}, 1.0)
    assert examiner.engine.asked[-1] == []


def trial(objective, one, hm=0.9, iras=1.0, worst=("", 0.0)):
    scores = Outcome(UAg=hm, UAd=hm, IRA=iras, CRA=1.0)
    return Trial(one, scores, 1.0, objective, worst)


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
    kept = trial(0.5, setting(), hm=0.6)
    greedy = trial(0.9, setting(k=2), hm=0.9, iras=0.9)
    harms = trial(0.8, setting(action="scale -4"), hm=0.9, worst=("cat", 0.5))
    examiner.base = lambda name: Outcome(UAg=0.0, UAd=0.0, IRA=1.0, CRA=1.0)
    chosen = _choose(examiner, "dog", [greedy, harms, kept], [])
    assert chosen.setting == kept.setting and chosen.within_floor
    nothing = _choose(examiner, "dog", [greedy, harms], [])
    assert nothing.setting == greedy.setting and not nothing.within_floor
    examiner.config = replace(CONFIG, retain_floor=0.2)
    assert _choose(examiner, "dog", [greedy, harms, kept], []).setting == greedy.setting


def test_what_is_preferred_decides_within_the_floors(examiner):
    forgets = trial(0.5, setting(), hm=0.95, iras=0.5)
    balanced = trial(0.9, setting(k=2), hm=0.9)
    examiner.base = lambda name: Outcome(UAg=0.0, UAd=0.0, IRA=1.0, CRA=1.0)
    for prefer, best in (("forgetting", forgets), ("balance", balanced)):
        examiner.config = replace(CONFIG, retain_floor=1.0, prefer=prefer)
        assert _choose(examiner, "dog", [forgets, balanced], []).setting == best.setting


def test_a_lost_concept_costs_what_lies_beyond_its_floor(examiner):
    """Through the examiner: the watched question's answer is lost under the edit."""
    item = Item(
        part=Part.WATCHED,
        kind=Kind.NAME,
        prompt="?",
        picture=None,
        words=("cat",),
        about="cat",
    )
    examiner.items["dog"].append(item)
    examiner.plain["dog"].append(Reading({7: -0.1}, (7,), "cat"))
    found = examiner.trials({"dog": [setting()]}, 1.0)["dog"][setting()]
    assert found.worst == ("cat", 1.0)
    free = replace(CONFIG, worst_floor=1.0)
    lenient = Examiner(Engine(), {"dog": examiner.choices["dog"]}, Questions(), free)
    lenient.items["dog"].append(item)
    lenient.plain["dog"].append(examiner.plain["dog"][-1])
    spared = lenient.trials({"dog": [setting()]}, 1.0)["dog"][setting()]
    assert spared.objective - found.objective == pytest.approx(
        0.5 * (1.0 - CONFIG.worst_floor)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"retain_floor": 1.5},
        {"worst_floor": -0.1},
        {"prefer": "harm"},
        {"watched": -1},
        {"screen": 0.0},
        {"passes": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(CONFIG, **wrong)
