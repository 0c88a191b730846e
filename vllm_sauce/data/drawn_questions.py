# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures that are drawn whatever these show.

A concept's own prompts are asked where it is. What a model makes of a prompt's tokens
then tells the prompt apart as well as the picture, so statistics of text behind a
picture are taken of questions that its concepts had no part in.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_sauce.data.concepts_yaml import ConceptFile, Example
from vllm_sauce.data.samples import Sample, picture_digest

MARK = "~drawn"
"""Behind the key of an example, and before the number of what is asked."""

_KINDS = 3
_TRIES = 20
"""A small file may have no other question."""


class DrawnQuestions:
    """Draws questions from all that a file asks, for one picture after another.

    In turn: one that names a concept of some domain, one whether some concept is there,
    and a prompt of some picture.
    """

    def __init__(self, file: ConceptFile) -> None:
        self._file = file
        self._domains = tuple(file.domains())
        self._names = tuple(file.concepts)
        asked = (e.prompts for e in file.examples if e.picture is not None)
        self._prompts = tuple(dict.fromkeys(itertools.chain.from_iterable(asked)))

    def questions(self, example: Example, count: int) -> tuple[str, ...]:
        """Return so many about a picture, fewer where the file has no more.

        The same ones each time; fewer are the first of more.
        """
        if example.picture is None:
            return ()
        rng = random.Random(example.digest)
        found: dict[str, None] = {}
        for number in range(count):
            for _ in range(_TRIES):
                question = self._draw(rng, number % _KINDS)
                if question not in found:
                    found[question] = None
                    break
        return tuple(found)

    def samples(self, example: Example, count: int) -> list[Sample]:
        """Return what a model is shown: the picture with each question."""
        return [
            Sample(
                key=f"{example.key}{MARK}{number}",
                prompt=question,
                picture=example.picture,
                concepts=example.concepts,
            )
            for number, question in enumerate(self.questions(example, count))
        ]

    def _draw(self, rng: random.Random, kind: int) -> str:
        if kind == 0:
            domain = rng.choice(self._domains)
            return rng.choice(self._file.questions(domain).name)
        if kind == 1:
            concept = self._file.concepts[rng.choice(self._names)]
            asked = concept.questions
            return asked.asks(concept.answers[0], rng.randrange(len(asked.exists)))
        return rng.choice(self._prompts)


def drawn_samples(file: ConceptFile, split: str | None, count: int) -> list[Sample]:
    """Return what is drawn about all pictures of a split, or of all splits."""
    pool = DrawnQuestions(file)
    chosen = [e for e in file.examples if split in (None, e.split)]
    return [sample for e in chosen for sample in pool.samples(e, count)]


def which_are_drawn(
    samples: Sequence[Mapping[str, Any]], file: ConceptFile, split: str | None
) -> list[bool]:
    """Say of each sample of a harvest whether what it asks was drawn.

    Not by its key alone: what its picture's own prompts ask, too, was shown once.
    """
    numbers = [one["key"].rpartition(MARK) for one in samples]
    found = [int(n) for _, mark, n in numbers if mark and n.isdecimal()]
    if not found:
        return [False] * len(samples)
    drawn = {
        (picture_digest(sample.picture), sample.prompt)
        for sample in drawn_samples(file, split, max(found) + 1)
        if sample.picture is not None
    }
    return [(one["picture"], one["prompt"]) in drawn for one in samples]
