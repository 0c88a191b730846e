# SPDX-License-Identifier: Apache-2.0
"""What is asked: each question unedited, under each method, and under sets of concepts.

Questions about one concept are those of ``evaluation.questionnaire``. A set of concepts
is asked about the examples' own concepts, whether they are to be forgotten or kept.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import picture_digest
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.questionnaire import Questionnaire
from vllm_sauce.evaluation.questions import PLURALS, Kind, Question
from vllm_sauce.measuring.settings import (
    BAN,
    BOTH,
    PLAIN,
    PROMPT,
    TOGETHER,
    EvalSettings,
)
from vllm_sauce.models.answer_tokens import Tokens

ALONE, ELIMINATION = "alone", "elimination"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question under one method."""

    method: str
    """PLAIN, one of ``METHODS``, or the name of a bundle beside ours."""
    forget: tuple[str, ...]
    """Concepts that are forgotten; () for PLAIN."""
    group: str
    """What it is asked for: ALONE, ELIMINATION, or the name of a set."""
    question: Question

    def plain(self) -> Case:
        """Return the same question, asked of the model as it is."""
        return replace(self, method=PLAIN, forget=())

    def key(self, digests: dict[int, str]) -> str:
        """Return what tells it from other things that are asked of a model.

        ``digests``: of pictures, by their ``id``; what is missing is added.
        """
        picture = self.question.picture
        if picture is not None and id(picture) not in digests:
            digests[id(picture)] = picture_digest(picture)
        shown = None if picture is None else digests[id(picture)]
        told = [self.method, self.forget, self.question.prompt, shown]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


Beginnings = Callable[[tuple[str, ...]], tuple[Tokens, ...]]


def ask_of(
    case: Case, file: ConceptFile, max_tokens: int, beginnings: Beginnings | None = None
) -> Ask:
    """Return how a case is put to a model.

    ``beginnings``: first tokens of words, of a model that tells how likely they are.
    """
    words = tuple(w for name in case.forget for w in file.concepts[name].answers)
    question = case.question
    banned: tuple[str, ...] = ()
    if case.method == PROMPT:
        wish = f"Do not mention {', '.join(words)}. "
        question = replace(question, prompt=wish + question.prompt)
    elif case.method in (BAN, BOTH):
        banned = tuple(
            form + ending
            for word in words
            for form in dict.fromkeys((word, word.lower(), word.capitalize()))
            for ending in PLURALS
        )
    wanted: tuple[Tokens, ...] = ()
    if beginnings is not None and reads_word(case, file):
        wanted = beginnings(words)
    return Ask(
        question=question,
        forget=() if case.method in (PLAIN, PROMPT, BAN) else case.forget,
        max_tokens=max_tokens,
        banned=banned,
        wanted=wanted,
    )


def reads_word(case: Case, file: ConceptFile) -> bool:
    """Say whether the one forgotten concept would be the answer, were it shown.

    The same for all cases of one key, whatever score they count for.
    """
    question = case.question
    named = question.kind is Kind.NAME and not question.optional
    if len(case.forget) != 1 or not named:  # None is forgotten where it is plain.
        return False
    domains = {file.concepts[name].domain for name in (*case.forget, question.about)}
    return len(domains) == 1


def cases(
    file: ConceptFile,
    split: str,
    names: Sequence[str],
    settings: EvalSettings,
    beside: Sequence[str] = (),
) -> list[Case]:
    """Return everything that is asked, without what it is compared with unedited.

    ``beside``: names of bundles that are asked as ours is.

    Raises: ConfigError if an example of a kind is missing
    """
    asked = Questionnaire(file, split, settings.seed)
    found = []
    for name in names:
        groups = {
            ALONE: asked.questions(
                name, settings.positives, settings.negatives, settings.watched
            ),
            ELIMINATION: asked.elimination(name, settings.eliminated),
        }
        found += [
            Case(method=method, forget=(name,), group=group, question=question)
            for method in (*settings.methods, *beside)
            for group, some in groups.items()
            for question in some
        ]
    edits = [m for m in (*settings.methods, *beside) if m not in (PROMPT, BAN)]
    if edits:
        for group, chosen in _sets(file, names, settings):
            rng = random.Random(f"{settings.seed}:{group}")
            questions = asked.about_all(rng, settings.set_examples)
            found += [
                Case(method=method, forget=chosen, group=group, question=question)
                for method in edits
                for question in questions
            ]
    return found


def _sets(
    file: ConceptFile, names: Sequence[str], settings: EvalSettings
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield names of sets and their concepts: random ones, and half of each domain."""
    together = settings.together
    if together is None:
        together = tuple(n for n in TOGETHER if n <= len(names))
    if wide := [n for n in together if n > len(names)]:
        raise ConfigError(
            f"{wide[0]} concepts together are more than the {len(names)} that there "
            "are; give --together fewer"
        )
    for count in together:
        for number in range(settings.sets):
            rng = random.Random(f"{settings.seed}:{count}:{number}")
            chosen = tuple(sorted(rng.sample(list(names), count)))
            yield f"{count} at once, set {number}", chosen
    if not together:
        return
    for domain, members in file.domains().items():
        mine = [name for name in members if name in names]
        if len(mine) >= 4:
            rng = random.Random(f"{settings.seed}:{domain}")
            yield f"half of {domain}", tuple(sorted(rng.sample(mine, len(mine) // 2)))
