# SPDX-License-Identifier: Apache-2.0
"""Scores of one concept in an exam small enough to mark by hand."""

import pytest
import torch

from tiny.marking import (
    DESCRIBE,
    NAME,
    NO,
    YES,
    Answers,
    Exam,
    concept_scores,
    sample_rows,
)
from vllm_sauce.models.shared_prefix import Sheet

DOG, CAT, COW, RED, BLUE = range(5)
NO_TOKEN, YES_TOKEN = 5, 6
KINDS = [NAME, NAME, YES, YES, NO, NO, DESCRIBE]


def build_exam() -> Exam:
    """Four pictures: dog on red, dog on blue, cat on red, cat on blue."""
    about: list[list[int]] = []
    for animal in (DOG, DOG, CAT, CAT):
        colour = RED if len(about) % 2 == 0 else BLUE
        other = (CAT if animal == DOG else COW, BLUE if colour == RED else RED)
        about.append([animal, colour, animal, colour, *other, animal])
    asked = torch.tensor(about)
    kind = torch.tensor(KINDS)
    expected = torch.where(kind == YES, YES_TOKEN, asked)
    expected = torch.where(kind == NO, NO_TOKEN, expected)
    present = torch.zeros(4, 5, dtype=torch.bool)
    present.scatter_(1, asked[:, :2], True)
    sheet = Sheet(
        prefix_ids=torch.zeros(1, dtype=torch.long),
        suffix_ids=torch.zeros(4, 7, 1, dtype=torch.long),
        read_block=torch.arange(7),
        read_at=torch.zeros(4, 7, dtype=torch.long),
    )
    return Exam(
        sheet=sheet,
        vision=torch.zeros(4, 1, 2),
        kind=kind,
        about=asked,
        expected=expected,
        present=present,
        domain_of=torch.tensor([0, 0, 0, 1, 1]),
        no_token=NO_TOKEN,
    )


def logits_of(said: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(said, 7).float() * 10


def test_an_unedited_perfect_model_forgets_nothing_and_keeps_all():
    exam = build_exam()
    scores = concept_scores(exam, DOG, Answers.of(exam, logits_of(exam.expected)))
    assert (scores.UAg, scores.UAd, scores.IRA, scores.CRA) == (0, 0, 1, 1)


def test_every_score_sees_its_own_answers_only():
    exam = build_exam()
    said = exam.expected.clone()
    said[0, 0] = CAT  # named something else: 1 of 4 generated answers
    said[0, 2] = said[1, 2] = NO_TOKEN  # both dogs denied
    said[2, 0] = DOG  # a cat misnamed: naming in domain 1 of 2
    said[0, 5] = YES_TOKEN  # with the dog, one of two "no" about colours wrong
    scores = concept_scores(exam, DOG, Answers.of(exam, logits_of(said)))
    assert pytest.approx(1 / 4) == scores.UAg
    assert scores.UAd == 1
    # On the cat pictures: naming 1/2; yes and no all right.
    assert pytest.approx((1 / 2 + 1) / 2) == scores.IRA
    # with: naming 1, yes 1, no 1/2 -> (1 + 3/4) / 2; without: 1
    assert pytest.approx((7 / 8 + 1) / 2) == scores.CRA


def test_saying_something_that_is_neither_yes_nor_no_is_not_forgetting():
    exam = build_exam()
    said = exam.expected.clone()
    said[:, 2] = BLUE
    scores = concept_scores(exam, DOG, Answers.of(exam, logits_of(said)))
    assert scores.UAd == 0


def test_sampled_pictures_hold_both_kinds_and_repeat():
    exam = build_exam()
    rows = sample_rows(exam, DOG, 2, 2, seed=3)
    assert exam.present[rows, DOG].tolist() == [True, True, False, False]
    assert torch.equal(rows, sample_rows(exam, DOG, 2, 2, seed=3))
