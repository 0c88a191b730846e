# SPDX-License-Identifier: Apache-2.0
"""Questions and answers about one picture, laid out as one training sequence.

The picture's tokens come once. Most sequences hold independent first turns: each
sees the picture and itself only, and its positions start right after the picture.
The rest are ordinary conversations of several turns.
"""

from dataclasses import dataclass

import numpy as np

from tiny.concepts import (
    COLOURS,
    CONCEPTS,
    DOMAIN_OF,
    DOMAINS,
    FOREGROUND_DOMAINS,
    FOREGROUNDS,
    MATERIALS,
    NOTHING,
)
from tiny.model import NUM_PATCHES
from tiny.questions import (
    NO,
    NONE,
    PREFIXES,
    SUFFIXES,
    TRAIN,
    YES,
    YES_NO_SUFFIXES,
    answer_description,
    answer_name,
    describe_questions,
    naming_questions,
    yes_no_questions,
)
from tiny.vocabulary import EOS, IMAGE, SPECIAL, encode, token_id, vocabulary

PREFIX_IDS = (*encode("USER:"), *[token_id(IMAGE)] * NUM_PATCHES)
_CONCEPT_IDS = {token_id(answer_name(c)) for c in CONCEPTS}
DESCRIBE_SHARE, NAMING_SHARE = 0.07, 0.23
"""The rest is yes/no: comparing two words is learnt last and has one token each."""
ABSENT_DOMAIN_SHARE = 0.2
HARD_NEGATIVE_SHARE = 0.7
CONVERSATION_SHARE = 0.15
NOISE_SHARE = 0.1


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    foreground: str
    colour: str
    material: str

    @classmethod
    def from_labels(cls, labels: np.ndarray) -> "Scene":
        """Return the scene of a row of label indices."""
        foreground = (*FOREGROUNDS, NOTHING)[labels[0]]
        return cls(foreground, COLOURS[labels[1]], MATERIALS[labels[2]])

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts in the scene."""
        names = (self.foreground, self.colour, self.material)
        return tuple(name for name in names if name != NOTHING)


@dataclass(frozen=True)
class Sequence:
    """One training sequence; every list has one entry per token."""

    ids: list[int]
    positions: list[int]
    turns: list[int]
    """The turn a token belongs to; 0 is the shared picture."""
    answers: list[bool]
    """Whether the token is part of an answer."""
    hints: list[int]
    """At a concept's name in a question, the id of yes or no: is it in the picture?

    Comparing a word with a picture is slow to be found when the answer, some tokens
    later, is the only teacher; asking for it at the word itself makes it quick. -1
    elsewhere.
    """


def pick(rng: np.random.Generator, choices: "tuple[str, ...] | list[str]") -> str:
    """Draw one of some strings."""
    return choices[int(rng.integers(len(choices)))]


def naming_turn(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Ask for the name of a domain's concept; ``none`` where there is none."""
    present = {DOMAIN_OF[concept]: concept for concept in scene.concepts}
    absent = [domain for domain in FOREGROUND_DOMAINS if domain not in present]
    if rng.random() < ABSENT_DOMAIN_SHARE:
        return pick(rng, naming_questions(pick(rng, absent))), NONE
    names = [*present, *[d for d in present if d in FOREGROUND_DOMAINS]]
    domain = pick(rng, names)
    return pick(rng, naming_questions(domain)), present[domain]


def yes_no_turn(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Ask whether a concept is there; half the answers are yes."""
    names = [*scene.concepts]
    if scene.foreground != NOTHING:
        names.append(scene.foreground)
    concept, answer = pick(rng, names), YES
    if rng.random() < 0.5:
        answer = NO
        hard = rng.random() < HARD_NEGATIVE_SHARE
        pool = DOMAINS[DOMAIN_OF[concept]] if hard else CONCEPTS
        if scene.foreground == NOTHING and rng.random() < 0.5:
            pool = FOREGROUNDS
        concept = pick(rng, [c for c in pool if c not in scene.concepts])
    return pick(rng, yes_no_questions(concept)), answer


def draw_turn(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Draw a question of any kind, in any dress, and its answer."""
    kind = rng.random()
    if kind < DESCRIBE_SHARE:
        question = pick(rng, describe_questions(TRAIN))
        answer = answer_description(scene.foreground, scene.colour, scene.material)
        return f"{pick(rng, PREFIXES)} {question}", answer
    if kind < DESCRIBE_SHARE + NAMING_SHARE:
        question, answer = naming_turn(rng, scene)
        suffix = pick(rng, SUFFIXES)
    else:
        question, answer = yes_no_turn(rng, scene)
        suffix = pick(rng, YES_NO_SUFFIXES)
    return f"{pick(rng, PREFIXES)} {question} {suffix}", answer


def hint_ids(scene: Scene, asked: list[int]) -> list[int]:
    """Return, at each concept's name, whether the picture shows it."""
    shown = {token_id(answer_name(concept)) for concept in scene.concepts}
    yes, no = token_id(YES), token_id(NO)
    return [
        (yes if id_ in shown else no) if id_ in _CONCEPT_IDS else -1 for id_ in asked
    ]


def question_ids(rng: np.random.Generator, question: str) -> list[int]:
    """Return a question's ids, at times behind some words that do not matter."""
    ids = encode(question)
    if rng.random() < NOISE_SHARE:
        # <unk> (id 1) and any known word may come before the question.
        words = rng.integers(len(SPECIAL), len(vocabulary()), int(rng.integers(1, 6)))
        noise = np.where(rng.random(len(words)) < 0.4, 1, words).tolist()
        ids = [*noise, *encode("."), *ids]
    return ids


def draw_sequence(rng: np.random.Generator, scene: Scene, turns: int) -> Sequence:
    """Draw a sequence of ``turns`` questions about a scene."""
    conversation = rng.random() < CONVERSATION_SHARE
    user, assistant, end = encode("USER:"), encode("ASSISTANT:"), token_id(EOS)
    ids = list(PREFIX_IDS)
    positions = list(range(len(ids)))
    owner = [0] * len(ids)
    answers = [False] * len(ids)
    hints = [-1] * len(ids)
    for turn in range(1, turns + 1):
        question, answer = draw_turn(rng, scene)
        asked = [*question_ids(rng, question), *assistant]
        if conversation and turn > 1:
            asked = [*user, *asked]
        said = [*encode(answer), end]
        start = len(ids) if conversation else len(PREFIX_IDS)
        ids += asked + said
        positions += range(start, start + len(asked) + len(said))
        # All turns of a conversation share one owner and so see each other.
        owner += [1 if conversation else turn] * (len(asked) + len(said))
        answers += [False] * len(asked) + [True] * len(said)
        hints += hint_ids(scene, asked) + [-1] * len(said)
    return Sequence(ids, positions, owner, answers, hints)
