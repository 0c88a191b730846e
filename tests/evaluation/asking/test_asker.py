# SPDX-License-Identifier: Apache-2.0
"""What is read of an answer, by hand."""

import math

import pytest

from vllm_sauce.evaluation.asking.asker import Answer, Ask, Place
from vllm_sauce.evaluation.questions import Question

ASK = Ask(question=Question(prompt="?"), wanted=((0, 1), (0, 2), (2,)))


def place(said, *shares):
    return Place((said,), {token: math.log(share) for token, share in shares})


PLACES = {
    (): place(0, (0, 0.5), (2, 0.2)),
    (0,): place(1, (1, 0.7), (2, 0.2)),
}


def test_each_place_is_read_once():
    assert ASK.places() == {(): (0, 2), (0,): (1, 2)}
    assert ASK.lines() == {(0,): [(), (0,)]}
    assert Ask(question=ASK.question).lines() == {(): [()]}


def test_an_answer_is_as_likely_as_its_tokens_in_turn():
    answer = Answer.read(ASK, PLACES, " so ")
    assert (answer.text, answer.said) == ("so", (0, 1))
    assert answer.probability([(0, 1)]) == pytest.approx(0.35)
    assert answer.probability(ASK.wanted) == pytest.approx(0.35 + 0.1 + 0.2)
    assert answer.log_probability(ASK.wanted) == pytest.approx(math.log(0.65))
    assert answer.says([(0, 1)]) and answer.says([(0,)])
    assert not answer.says([(0, 2), (2,)])


def test_what_was_not_read_is_not_said():
    elsewhere = PLACES | {(): place(2, (0, 0.3), (2, 0.6))}
    assert Answer.read(ASK, elsewhere, "").said == (2,)
    nothing = PLACES | {(): Place((), {0: -1.0, 2: -1.0})}
    assert Answer.read(ASK, nothing, "").said == ()
