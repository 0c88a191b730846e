# SPDX-License-Identifier: Apache-2.0
"""An exam: pictures, questions, right answers, and the scores of one concept in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_sauce.evaluation.metrics import Outcome
from vllm_sauce.models.shared_prefix import Sheet

KINDS = ("name", "yes", "no", "describe")
"""What a question asks: name a domain's concept, is there one that is (yes) or is
not (no) in the picture, or describe (read where the concept's word is due)."""
NAME, YES, NO, DESCRIBE = range(4)


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions about pictures; concepts and domains are numbered."""

    sheet: Sheet
    vision: Tensor
    """Vision site's activations. [num_pictures, patches, d_model]"""
    kind: Tensor
    """Index into ``KINDS``. [num_reads]"""
    about: Tensor
    """Concept each question is about. [num_pictures, num_reads]"""
    expected: Tensor
    """Token of the right answer. [num_pictures, num_reads]"""
    present: Tensor
    """Which concepts a picture shows. [num_pictures, num_concepts] bool"""
    domain_of: Tensor
    """Domain of each concept. [num_concepts]"""
    no_token: int

    def __len__(self) -> int:
        return len(self.about)

    def rows(self, index: Tensor) -> Exam:
        """Return the exam about some of the pictures."""
        return Exam(
            self.sheet.rows(index),
            self.vision[index],
            self.kind,
            self.about[index],
            self.expected[index],
            self.present[index],
            self.domain_of,
            self.no_token,
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """Whether each answer is right, and whether it is "no"; 0 or 1."""

    right: Tensor
    """[num_pictures, num_reads]"""
    said_no: Tensor
    """[num_pictures, num_reads]"""

    @classmethod
    def of(cls, exam: Exam, logits: Tensor) -> Answers:
        """Read answers from logits.

        Shapes: logits [num_pictures, num_reads, vocab]
        """
        said = logits.argmax(-1)
        right = (said == exam.expected).float()
        said_no = (said == exam.no_token).float()
        return cls(right, said_no)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked values; NaN when there is none."""
    return values[mask].mean()


def _accuracy(exam: Exam, right: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of naming's and balanced yes/no's accuracy, each half."""
    kinds = exam.kind.expand_as(right)
    yes_no = (
        _mean(right, mask & (kinds == YES)) + _mean(right, mask & (kinds == NO))
    ) / 2
    return (_mean(right, mask & (kinds == NAME)) + yes_no) / 2


def concept_scores(exam: Exam, concept: int, answers: Answers) -> Outcome:
    """Return the scores of an edit that should forget one concept.

    The definitions are those of ``vllm_sauce.evaluation.metrics``.
    """
    kinds = exam.kind.expand_as(exam.about)
    shown = exam.present[:, concept, None].expand_as(exam.about)
    target = shown & (exam.about == concept)
    domains = exam.domain_of[exam.about]
    same = domains == exam.domain_of[concept]
    generated = target & ((kinds == NAME) | (kinds == DESCRIBE))
    forgot = 1 - answers.right
    return Outcome(
        UAg=float(_mean(forgot, generated)),
        UAd=float(_mean(answers.said_no, target & (kinds == YES))),
        IRA=float(
            _accuracy(exam, answers.right, ~shown & same & (exam.about != concept))
        ),
        CRA=float(
            (
                _accuracy(exam, answers.right, shown & ~same)
                + _accuracy(exam, answers.right, ~shown & ~same)
            )
            / 2
        ),
    )


def sample_rows(
    exam: Exam, concept: int, positives: int, negatives: int, seed: int
) -> Tensor:
    """Return pictures with a concept and without it.

    Half of the latter (or more, where few others exist) show its domain.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + concept)
    shown = exam.present[:, concept]
    in_domain = exam.present[:, exam.domain_of == exam.domain_of[concept]].any(1)

    def draw(mask: Tensor, count: int) -> Tensor:
        rows = mask.nonzero()[:, 0]
        return rows[torch.randperm(len(rows), generator=generator)][:count]

    other = draw(~shown & ~in_domain, negatives // 2)
    same = draw(~shown & in_domain, negatives - len(other))
    return torch.cat([draw(shown, positives), same, other])
