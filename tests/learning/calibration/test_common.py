# SPDX-License-Identifier: Apache-2.0
"""One setting for concepts that may choose from the same, and who leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.learning.calibration.examined import (
    CONFIG,
    Engine,
    Questions,
    choices_of,
    setting,
    trial,
)
from vllm_sauce.evaluation.questions import Part
from vllm_sauce.learning.calibration.common import MOST, common_settings, pools
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner, Sure
from vllm_sauce.learning.calibration.search import _surely_better, calibrate
from vllm_sauce.learning.calibration.setting import setting_of_json, setting_to_json

MILD, STRONG = setting(), setting(action="scale -4")


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def named(*names: str, count: int = 2) -> dict[str, EditChoices]:
    """Return concepts that may choose from the same."""
    latents = choices_of(count).latents
    return {name: EditChoices.of(name, latents, CONFIG) for name in names}


class Twenty(Questions):
    """Twenty questions of each part; each knows its concept."""

    def questions(
        self, name: str, positives: int, negatives: int, watched: int = 0
    ) -> list[Any]:
        return [
            replace(one, prompt=f"{name} {number}")
            for one in super().questions(name, positives, negatives, watched)
            for number in range(20)
        ]


def examiner_of(forgets: Mapping[str, tuple[int, int]], lost: int = 0) -> Examiner:
    """Return an examiner of concepts: of twenty, what mild and strong edits forget.

    A strong edit costs ``lost`` other answers.
    """

    def says(ask: Any) -> str:
        name, number = ask.question.prompt.split()
        strong = any("scale -4" in one for one in ask.forget)
        gone = forgets[name][strong] if ask.question.part is Part.UAG else lost * strong
        return "cat" if ask.forget and int(number) < gone else "dog"

    return Examiner(Engine(says), named(*forgets), Twenty(), CONFIG)


def test_who_may_choose_from_the_same_shares_a_setting() -> None:
    choices = named("dog", "cat") | named("sky", count=1)
    assert list(pools(choices, 0).values()) == [["cat", "dog"]]


def test_a_common_setting_is_sought_on_some_of_many() -> None:
    """The same ones, however they come, and whoever else has one of their own."""
    names = [f"c{number}" for number in range(MOST + 15)]
    choices = named(*names)
    (drawn,) = pools(choices, 7).values()
    assert len(set(drawn)) == MOST
    assert list(pools(choices, 8).values()) != [drawn]
    others = named(*(f"o{number}" for number in range(MOST + 15)), count=1)
    backwards = dict(reversed([*others.items(), *choices.items()]))
    assert pools(backwards, 7)[choices["c0"].grids] == drawn


def action(one: Any) -> str:
    """Return what a setting of one site does."""
    (edit,) = one
    return str(edit.action.text)


def test_the_common_setting_is_what_all_answers_say() -> None:
    """One concept alone is better off with what costs the other two more."""
    forgets = {"dog": (10, 20), "cat": (19, 20), "sky": (19, 20)}
    tried = common_settings(examiner_of(forgets, lost=6), silent)
    assert action(tried[0].setting) == "scale 0" and tried[0].share == 1.0
    tried = common_settings(examiner_of(forgets), silent)
    assert action(tried[0].setting) == "scale -4"
    assert tried[0].objective == max(one.objective for one in tried)


def test_a_concept_of_which_nothing_is_left_is_not_searched() -> None:
    examiner = examiner_of({"dog": (20, 20), "cat": (4, 20)})
    found = calibrate(examiner, dict.fromkeys(("dog", "cat"), MILD))
    assert found["dog"].best.setting == MILD and found["dog"].common
    assert [one.setting for one in found["dog"].trials] == [MILD]
    assert action(found["cat"].best.setting) == "scale -4"
    assert not found["cat"].common


def test_a_setting_of_its_own_must_be_surely_better() -> None:
    """Twenty of twenty for nineteen or eighteen are luck; for three they are not."""
    for few in (18, 19):
        found = calibrate(examiner_of({"dog": (few, 20)}), {"dog": MILD})["dog"]
        assert found.common and found.best.scores.UAg == few / 20
    found = calibrate(examiner_of({"dog": (3, 20)}), {"dog": MILD})["dog"]
    assert not found.common and found.best.scores.UAg == 1.0


def test_a_concept_with_no_like_is_searched() -> None:
    found = calibrate(examiner_of({"dog": (3, 20)}), {})["dog"]
    assert not found.common and found.best.scores.UAg == 1.0


@pytest.mark.parametrize(
    ("own", "common", "better"),
    [
        # What keeps is better than what does not, and what forgets than both.
        (trial(0.5, STRONG), trial(0.9, MILD, iras=0.5), True),
        (trial(0.5, STRONG, iras=0.5), trial(0.5, MILD), False),
        (trial(0.9, STRONG, hm=0.7), trial(0.5, MILD, iras=0.5), False),
        # Of two that keep too little, what the search likes better.
        (trial(0.5, STRONG, iras=0.8), trial(0.1, MILD, hm=1.0, iras=0.1), True),
        (trial(0.1, STRONG, hm=1.0, iras=0.1), trial(0.5, MILD, iras=0.8), False),
        # Of two that do both, what forgets more by more than both err.
        (
            trial(0.9, STRONG, hm=0.95, sure=Sure(forgetting=0.89, loss=0.0)),
            trial(0.5, MILD, hm=0.9, sure=Sure(forgetting=0.82, loss=0.0)),
            False,
        ),
        (
            trial(0.9, STRONG, hm=1.0, sure=Sure(forgetting=0.99, loss=0.0)),
            trial(0.5, MILD, hm=0.9, sure=Sure(forgetting=0.82, loss=0.0)),
            True,
        ),
    ],
)
def test_what_is_surely_better(own: Any, common: Any, better: bool) -> None:
    assert _surely_better(CONFIG, own, common) is better


def test_a_setting_is_read_as_it_was_written() -> None:
    one = (*setting(action="clamp 2", without=(4,)), replace(MILD[0], site="decoder.1"))
    assert setting_of_json(setting_to_json(one)) == one
