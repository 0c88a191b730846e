# SPDX-License-Identifier: Apache-2.0
"""Questions about what is in pictures, and marks for the answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import ValidationError
from torch import Tensor

from vllm_sauce.concepts import Catalogue
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import Sample
from vllm_sauce.data.schema import Questions
from vllm_sauce.errors import ConfigError

YES, NO, NAME = "yes", "no", "name"
"""What a question's right answer is: yes, no, or the concept's name."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How concepts are asked for, and the words that a model says for them."""

    questions: Mapping[str, Questions] = field(default_factory=dict)
    """By domain."""
    default: Questions = field(default_factory=Questions)
    """For every other domain."""
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By concept; its name for every other one."""

    @classmethod
    def of_file(cls, file: ConceptFile) -> Wording:
        """Return what a concepts.yaml says."""
        return cls(
            questions={domain: file.questions(domain) for domain in file.domains()},
            answers={name: item.answers for name, item in file.concepts.items()},
        )

    @classmethod
    def of_options(cls, exists: str | None, naming: Sequence[str]) -> Wording:
        """Return what a command line says: ``DOMAIN=QUESTION``, or one for all.

        Raises: ConfigError
        """
        asked: dict[str, object] = {} if exists is None else {"exists": exists}
        by_domain: dict[str, str] = {}
        for text in naming:
            domain, equals, question = text.partition("=")
            by_domain.update({domain: question} if equals else {"": text})
        if "" in by_domain:
            asked["name"] = by_domain.pop("")
        try:
            return cls(
                {
                    domain: Questions.model_validate(asked | {"name": question})
                    for domain, question in by_domain.items()
                },
                Questions.model_validate(asked),
            )
        except ValidationError as error:
            raise ConfigError(f"this is no question: {error.errors()[0]['msg']}") from (
                error
            )

    def of_domain(self, domain: str) -> Questions:
        """Return how a domain's concepts are asked for."""
        return self.questions.get(domain, self.default)

    def words(self, concept: str) -> tuple[str, ...]:
        """Return the words that a model says for a concept, the usual one first."""
        return self.answers.get(concept, (concept,))

    def naming(self, domain: str) -> str | None:
        """Return the question whose answer is a concept's name, None unless given.

        The default question leaves the answer's form open ("a dog on ...").
        """
        asked = self.of_domain(domain)
        return asked.name[0] if "name" in asked.model_fields_set else None


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
    wording: Wording,
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
            if wording.naming(catalogue[name].domain) is not None:
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
