# SPDX-License-Identifier: Apache-2.0
"""Questions about what is in pictures, and marks for the answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import ConfigError
from vllm_sauce.training.samples import Sample

IS_THERE = "Is there {concept} in the picture?"
"""Default question; ``{concept}`` and ``{domain}`` are filled in."""

YES, NO, NAME = "yes", "no", "name"
"""What a question's right answer is: yes, no, or the concept's name."""


@dataclass(frozen=True, slots=True)
class Templates:
    """How questions are put."""

    yes_no: str = IS_THERE
    """Must hold ``{concept}``."""
    naming: Mapping[str, str] = field(default_factory=dict)
    """By domain; ``""`` is for every other domain. None: naming is not asked."""

    def __post_init__(self) -> None:
        if "{concept}" not in self.yes_no:
            raise ConfigError(
                f"a yes/no question must hold {{concept}}, got {self.yes_no!r}"
            )
        for text in (self.yes_no, *self.naming.values()):
            _fill(text, "a", "b")

    def yes_no_question(self, concept: str, domain: str) -> str:
        """Return the question whether a concept is there."""
        return _fill(self.yes_no, concept, domain)

    def naming_question(self, domain: str) -> str | None:
        """Return the question for a domain's concept, or None."""
        text = self.naming.get(domain, self.naming.get(""))
        return None if text is None else _fill(text, "", domain)


def _fill(text: str, concept: str, domain: str) -> str:
    try:
        return text.format(concept=concept, domain=domain)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"a question may hold {{concept}} and {{domain}} only, got {text!r}"
        ) from error


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture."""

    picture: int
    """Number of the picture in the quiz."""
    concept: str
    """What it is about."""
    answer: str
    """``YES``, ``NO`` or ``NAME``."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How each question of a quiz was answered."""

    probability: Tensor
    """Of the right answer. [num_questions]"""
    right: Tensor
    """Whether the right answer is the most probable one. [num_questions] bool"""


def choose_questions(
    samples: Sequence[Sample],
    catalogue: Catalogue,
    templates: Templates,
    per_concept: int,
    seed: int = 0,
) -> tuple[list[int], list[Question]]:
    """Return the samples to ask about, and the questions.

    Every concept gets up to ``per_concept`` pictures with it. A picture is asked about
    all of its concepts, and about one it does not show, of the same domain if it can.
    """
    rng = random.Random(seed)
    pictured = [i for i, sample in enumerate(samples) if sample.picture is not None]
    rng.shuffle(pictured)
    chosen: set[int] = set()
    for name in catalogue:
        shown = [i for i in pictured if name in samples[i].concepts]
        # Pictures that are asked anyway come first: fewer passes say the same.
        shown.sort(key=lambda i: i not in chosen)
        chosen.update(shown[:per_concept])
    rows = sorted(chosen)
    questions = []
    for picture, row in enumerate(rows):
        there = [name for name in samples[row].concepts if name in catalogue]
        for name in there:
            questions.append(Question(picture, name, YES))
            if templates.naming_question(catalogue[name].domain) is not None:
                questions.append(Question(picture, name, NAME))
        missing = _absent(rng, samples[row].concepts, there, catalogue)
        if missing is not None:
            questions.append(Question(picture, missing, NO))
    return rows, questions


def _absent(
    rng: random.Random, shown: Sequence[str], there: Sequence[str], catalogue: Catalogue
) -> str | None:
    domain = catalogue[rng.choice(list(there))].domain
    others = [name for name in catalogue if name not in shown]
    alike = [name for name in others if catalogue[name].domain == domain]
    return rng.choice(alike or others) if others else None


def mark(
    logits: Tensor,
    where: Sequence[tuple[int, int]],
    accepted: Sequence[Sequence[Sequence[int]]],
) -> tuple[Tensor, Tensor]:
    """Return each right answer's probability, and whether it would be given.

    ``where`` has row and first read of each question, ``accepted`` the tokens that are
    right at each of its reads.

    Shapes: logits [rows, num_reads, vocab] -> [num_questions], [num_questions] bool
    """
    shares, said = logits.softmax(-1), logits.argmax(-1)
    probability = torch.ones(len(where))
    right = torch.ones(len(where), dtype=torch.bool)
    for i, (row, read) in enumerate(where):
        for step, tokens in enumerate(accepted[i]):
            probability[i] *= shares[row, read + step, list(tokens)].sum()
            right[i] &= int(said[row, read + step]) in tokens
    return probability, right
