# SPDX-License-Identifier: Apache-2.0
"""What is asked to see whether a concept is forgotten and everything else is kept.

``docs/metrics.md`` says which score each question counts for. Where no other concept is
labelled, examples without the concept must be answered as they were unedited.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile, Example
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind, Part, Question


class Questionnaire:
    """Asks about the concepts of one file on the examples of one split."""

    def __init__(self, file: ConceptFile, split: str, seed: int = 0) -> None:
        self.file, self.split, self.seed = file, split, seed
        self.domains = file.domains()

    def questions(
        self, name: str, positives: int, negatives: int, watched: int = 0
    ) -> list[Question]:
        """Return the questions that judge one concept's edits.

        ``positives`` and ``negatives``: examples with it and without it at most; of
        the latter half show another concept of its domain, where there are such. What
        else is in a picture is asked of as many examples with it as without: it is
        most of the questions, and the few about the concept itself are what is noisy.
        ``watched``: examples of every other concept at most.

        Raises: ConfigError if the split has no example of a kind
        """
        concept = self.file.concepts[name]
        rng = random.Random(f"{self.seed}:{name}")
        shown = _draw(rng, concept.examples(True, self.split), positives)
        others = concept.examples(False, self.split)
        mates = [e for e in others if self._mates(e, concept)]
        rest = [e for e in others if not self._mates(e, concept)]
        absent = _draw(rng, rest, max(negatives // 2, negatives - len(mates)))
        absent += _draw(rng, mates, negatives - len(absent))
        if not shown or not absent:
            raise ConfigError(
                f"{self.file.path}: {name!r} has {len(shown)} examples with it and "
                f"{len(absent)} without it in the split {self.split!r}; give more"
            )
        found = [one for e in shown for one in self._target(rng, concept, e)]
        for example in shown[: len(absent)]:
            found += self._retain(rng, concept, example, Part.CRA_SHOWN)
        for example in absent:
            found += self._retain(rng, concept, example, Part.CRA_OTHER)
        named = (one for one in found if one.kind is Kind.NAME)
        if not any(one.part is Part.CRA_OTHER for one in named):
            found += [one for e in absent for one in _kept(e, Part.CRA_OTHER)]
        return found + self._watch(rng, concept, watched)

    def elimination(self, name: str, count: int) -> list[Question]:
        """Return questions whether each other concept of its domain is there.

        About ``count`` examples with the concept and without it, at most. Whoever hears
        no to all of them knows what is left.
        """
        concept = self.file.concepts[name]
        rng = random.Random(f"{self.seed}:{name}:elimination")
        found = []
        for here in (True, False):
            examples = concept.examples(here, self.split)
            asked = [e for e in examples if _wordings(concept, e)]
            for example in _draw(rng, asked, count):
                for mate in self.domains[concept.domain]:
                    if mate != name:
                        other = self.file.concepts[mate]
                        found.append(_exists(rng, None, Kind.NO, other, example))
        return found

    def about_all(self, rng: random.Random, count: int) -> list[Question]:
        """Return questions about every concept of some examples.

        For each in a picture: its name, whether it is there, and whether another is
        that is not. Texts are asked as they are: for each of their concepts, whether
        it is mentioned, and whether the answer is kept; and yes/no, where a file asks
        that of texts.
        """
        examples = [e for e in self.file.examples if e.split == self.split]
        pictures = [e for e in examples if e.picture and e.concepts]
        found = []
        for example in _draw(rng, pictures, count):
            for name in example.concepts:
                found += self._about(rng, Part.WATCHED, name, example)
        texts = [e for e in examples if e.picture is None]
        for example in _draw(rng, texts, count):
            for name in example.concepts:
                concept = self.file.concepts[name]
                found += _own(example.prompts, Part.WATCHED, concept, example)
                found += self._about(rng, Part.WATCHED, name, example)
            found += _kept(example, Part.WATCHED)
        return found

    def _watch(
        self, rng: random.Random, target: ConceptExamples, count: int
    ) -> list[Question]:
        """Have every other concept named on examples without the target.

        Few examples that show many concepts each: a picture costs more than a question.
        A text is asked as it is: its concept must be mentioned as it was.
        """
        examples = target.examples(False, self.split)
        rng.shuffle(examples)
        asked: list[Question] = []
        for _ in range(count):
            missing = {name for name in self.file.concepts if name != target.name}
            while missing:
                best = max(
                    examples, key=lambda e: len(missing & set(e.concepts)), default=None
                )
                found = missing & set(best.concepts) if best else set()
                if best is None or not found:
                    break
                examples.remove(best)
                missing -= found
                for name in best.concepts:
                    if name in found:
                        asked += _named(
                            rng, Part.WATCHED, self.file.concepts[name], best
                        )
        return asked

    def _mates(self, example: Example, concept: ConceptExamples) -> bool:
        return any(
            other != concept.name and self.file.concepts[other].domain == concept.domain
            for other in example.concepts
        )

    def _target(
        self, rng: random.Random, concept: ConceptExamples, example: Example
    ) -> list[Question]:
        """Ask about the concept where it is."""
        prompts = [p for p in example.prompts if p not in concept.questions.name]
        asked = []
        if prompts:
            # One of them: naming it counts as much, and so do other examples.
            asked += _own([rng.choice(prompts)], Part.UAG, concept, example)
        if example.picture is not None:
            asked.append(_naming(rng, Part.UAG, concept, example))
        # Neither yes nor no is no denial: what counts is the word "no".
        wordings = range(_wordings(concept, example))
        for wording in rng.sample(wordings, min(2, len(wordings))):
            asked.append(_exists(rng, Part.UAD, Kind.NO, concept, example, wording))
        return asked

    def _retain(
        self, rng: random.Random, target: ConceptExamples, example: Example, part: Part
    ) -> list[Question]:
        """Ask about the other concepts of an example, and some that it lacks."""
        asked: list[Question] = []
        for name in example.concepts:
            other = self.file.concepts[name]
            same = other.domain == target.domain
            if name == target.name or (same and part is Part.CRA_SHOWN):
                continue
            mine = Part.IRA if same else part
            asked += self._about(rng, mine, name, example, target.name)
        return asked

    def _about(
        self, rng: random.Random, part: Part, name: str, example: Example, but: str = ""
    ) -> list[Question]:
        """Ask for a concept, whether it is there, and whether one that lacks is.

        ``but``: a concept of its domain that is not asked for. The concept of a text is
        not asked for: that is what its own words do.
        """
        concept, there = self.file.concepts[name], {*example.concepts, but}
        asked = [_naming(rng, part, concept, example)] if example.picture else []
        if not _wordings(concept, example):
            return asked
        asked.append(_exists(rng, part, Kind.YES, concept, example))
        if lacking := [n for n in self.domains[concept.domain] if n not in there]:
            missing = self.file.concepts[rng.choice(lacking)]
            asked.append(_exists(rng, part, Kind.NO, missing, example))
        return asked


def _draw(rng: random.Random, examples: Sequence[Example], count: int) -> list[Example]:
    return rng.sample(examples, min(max(count, 0), len(examples)))


def _own(
    prompts: Sequence[str], part: Part, concept: ConceptExamples, example: Example
) -> list[Question]:
    """Ask an example's own prompts, which may be about something else in it."""
    words, name = concept.answers, concept.name
    asked = [_question(part, Kind.NAME, p, example, words, name) for p in prompts]
    return [replace(one, optional=True) for one in asked]


def _kept(example: Example, part: Part) -> list[Question]:
    return [_question(part, Kind.KEEP, prompt, example) for prompt in example.prompts]


def _question(
    part: Part | None,
    kind: Kind,
    prompt: str,
    example: Example,
    words: tuple[str, ...] = (),
    about: str = "",
) -> Question:
    return Question(
        part=part,
        kind=kind,
        prompt=prompt,
        picture=example.picture,
        words=words,
        about=about,
        shown=example.concepts,
    )


def _naming(
    rng: random.Random, part: Part, concept: ConceptExamples, example: Example
) -> Question:
    """Ask for the concept's name in one of its wordings."""
    prompt = rng.choice(concept.questions.name)
    return _question(part, Kind.NAME, prompt, example, concept.answers, concept.name)


def _named(
    rng: random.Random, part: Part, concept: ConceptExamples, example: Example
) -> list[Question]:
    """Ask for the concept's name, of a text by one of its own prompts."""
    if example.picture is not None:
        return [_naming(rng, part, concept, example)]
    return _own([rng.choice(example.prompts)], part, concept, example)


def _wordings(concept: ConceptExamples, example: Example) -> int:
    """Return in how many wordings it can be asked whether the concept is there."""
    asked = concept.questions
    return len(asked.exists if example.picture else asked.exists_in_text or ())


def _exists(
    rng: random.Random,
    part: Part | None,
    kind: Kind,
    concept: ConceptExamples,
    example: Example,
    wording: int | None = None,
) -> Question:
    """Ask whether it is there, in this or in any wording."""
    questions = concept.questions
    word = questions.yes if kind is Kind.YES else questions.no
    if wording is None:
        wording = rng.randrange(_wordings(concept, example))
    text = None if example.picture else rng.choice(example.prompts)
    prompt = questions.asks(concept.answers[0], wording, text)
    return _question(part, kind, prompt, example, (word,), concept.name)


def share_of(
    questions: Sequence[Question], share: float, *, watched: bool = True
) -> list[int]:
    """Return the numbers of a share of the questions, the same share of every kind.

    At least one of each part and kind; the first ones, so larger shares hold smaller.
    ``watched``: whether other concepts are named, which takes pictures of their own.
    """
    groups: dict[tuple[Part | None, Kind], list[int]] = {}
    for number, question in enumerate(questions):
        if question.part is Part.WATCHED and not watched:
            continue
        groups.setdefault((question.part, question.kind), []).append(number)
    return sorted(
        number
        for numbers in groups.values()
        for number in numbers[: max(1, round(share * len(numbers)))]
    )
