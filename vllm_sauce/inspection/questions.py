# SPDX-License-Identifier: Apache-2.0
"""What a report asks about pictures, in the words of a file or a command line."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from vllm_sauce.concepts import Catalogue, Concept
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import Sample
from vllm_sauce.data.schema import Questions
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind, Question


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


def choose_questions(
    samples: Sequence[Sample],
    catalogue: Catalogue,
    wording: Wording,
    per_concept: int,
) -> list[Question]:
    """Return questions about enough samples, in the samples' order.

    Every concept gets up to ``per_concept`` pictures with it. A picture is asked about
    all of its concepts, and about one it does not show, of the same domain if it can.
    """
    rng = random.Random(0)
    pictured = [i for i, sample in enumerate(samples) if sample.picture is not None]
    rng.shuffle(pictured)
    chosen: set[int] = set()
    for name in catalogue:
        shown = [i for i in pictured if name in samples[i].concepts]
        # Pictures that are asked anyway come first: fewer passes say the same.
        shown.sort(key=lambda i: i not in chosen)
        chosen.update(shown[:per_concept])
    questions = []
    for row in sorted(chosen):
        sample = samples[row]
        there = [name for name in sample.concepts if name in catalogue]
        for name in there:
            questions.append(_about(sample, catalogue[name], wording, Kind.YES))
            if wording.naming(catalogue[name].domain) is not None:
                questions.append(_about(sample, catalogue[name], wording, Kind.NAME))
        missing = _absent(rng, sample.concepts, there, catalogue)
        if missing is not None:
            questions.append(_about(sample, catalogue[missing], wording, Kind.NO))
    return questions


def _about(sample: Sample, concept: Concept, wording: Wording, kind: Kind) -> Question:
    asked, words = wording.of_domain(concept.domain), wording.words(concept.name)
    prompt = asked.name[0] if kind is Kind.NAME else asked.asks(words[0])
    if kind is not Kind.NAME:
        words = (asked.yes if kind is Kind.YES else asked.no,)
    return Question(
        prompt=prompt,
        picture=sample.picture,
        kind=kind,
        words=words,
        about=concept.name,
        shown=sample.concepts,
    )


def _absent(
    rng: random.Random, shown: Sequence[str], there: Sequence[str], catalogue: Catalogue
) -> str | None:
    domain = catalogue[rng.choice(list(there))].domain
    others = [name for name in catalogue if name not in shown]
    alike = [name for name in others if catalogue[name].domain == domain]
    return rng.choice(alike or others) if others else None
