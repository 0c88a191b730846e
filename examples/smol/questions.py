# SPDX-License-Identifier: Apache-2.0
"""Questions about a picture, with answers in sentences as a chat model gives them.

The phrasings are sauce-tiny's and some more; ``HELD_OUT`` ones only ever measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.concepts import CONCEPTS, DOMAIN_OF, DOMAINS, FOREGROUND_DOMAINS, NOTHING
from tiny.conversations import Scene
from tiny.questions import HELD_OUT as TINY_HELD_OUT
from tiny.questions import TRAIN as TINY_TRAIN
from tiny.questions import Phrasings, with_article

NAME, YES, NO, DESCRIBE = "name", "yes", "no", "describe"
NAME_SHARE, DESCRIBE_SHARE = 0.35, 0.2
"""Shares of the kinds of question; the rest is yes/no, half of each."""
ABSENT_DOMAIN_SHARE = 0.1
HARD_NEGATIVE_SHARE = 0.7
SHORT_SHARE = 0.4
PREFIXES = ("", "", "", "", "Please look at the picture.", "Hello!", "Look:", "Hi,")
SUFFIXES = ("", "", "", "Please.", "Answer the question.", "Answer in a sentence.")
SHORT = "Answer yes or no."
"""What asks for one word."""

TRAIN = Phrasings(
    naming={
        "objects": (*TINY_TRAIN.naming["objects"], "What is this?", "What is it?"),
        "sports": TINY_TRAIN.naming["sports"],
        "emotions": (*TINY_TRAIN.naming["emotions"], "What does this face feel?"),
        "colours": (*TINY_TRAIN.naming["colours"], "What color is it behind?"),
        "materials": (*TINY_TRAIN.naming["materials"], "What is behind it made of?"),
    },
    yes_no=TINY_TRAIN.yes_no,
    describe=(
        *TINY_TRAIN.describe,
        "Describe it in a sentence.",
        "What is going on in this picture?",
    ),
)
HELD_OUT = TINY_HELD_OUT
_NAMED = {
    "objects": "It is {x}.",
    "sports": "The sport is {x}.",
    "emotions": "The face shows {x}.",
    "colours": "The background is {x}.",
    "materials": "The background is made of {x}.",
}
_ABSENT = {
    "objects": "There is no object in the picture.",
    "sports": "There is no sport in the picture.",
    "emotions": "There is no face in the picture.",
}
_YES_NO = {
    "objects": ("Yes, there is {x}.", "No, there is not {x}."),
    "sports": ("Yes, there is {x}.", "No, there is no {x}."),
    "emotions": ("Yes, the face shows {x}.", "No, there is no {x}."),
    "colours": ("Yes, the background is {x}.", "No, the background is not {x}."),
    "materials": ("Yes, the background is {x}.", "No, the background is not {x}."),
}


@dataclass(frozen=True)
class Question:
    """A question about a picture and its answer."""

    text: str
    answer: str
    kind: str
    domain: str
    """The domain asked about; of a description, that of the foreground or nothing."""


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Draw one of some strings."""
    return choices[int(rng.integers(len(choices)))]


def answer_name(concept: str) -> str:
    """Return the sentence that names a concept."""
    return _NAMED[DOMAIN_OF[concept]].format(x=with_article(concept))


def answer_yes_no(concept: str, present: bool) -> str:
    """Return the sentence that says whether a concept is there."""
    yes, no = _YES_NO[DOMAIN_OF[concept]]
    return (yes if present else no).format(x=with_article(concept))


def answer_description(scene: Scene) -> str:
    """Return the sentence that names all a picture shows."""
    ground = f"{scene.colour} {scene.material}"
    domain = DOMAIN_OF.get(scene.foreground)
    if domain is None:
        return f"The picture shows nothing on {ground}."
    subject = {
        "objects": with_article(scene.foreground),
        "sports": f"a {scene.foreground} scene",
        "emotions": f"a face of {scene.foreground}",
    }[domain]
    return f"The picture shows {subject} on {ground}."


def naming(rng: np.random.Generator, domain: str, scene: Scene) -> Question:
    """Ask for a domain's concept in a scene, which may have none."""
    there = [c for c in scene.concepts if DOMAIN_OF[c] == domain]
    answer = answer_name(there[0]) if there else _ABSENT[domain]
    return Question(pick(rng, TRAIN.naming[domain]), answer, NAME, domain)


def yes_no(
    rng: np.random.Generator, concept: str, present: bool, phrasings: Phrasings = TRAIN
) -> Question:
    """Ask whether a concept is in a scene."""
    text = pick(rng, phrasings.yes_no[DOMAIN_OF[concept]])
    text = text.format(x=with_article(concept))
    answer = answer_yes_no(concept, present)
    return Question(text, answer, YES if present else NO, DOMAIN_OF[concept])


def absent_concept(
    rng: np.random.Generator, scene: Scene, like: str, hard: float
) -> str:
    """Draw a concept that a scene has not; of the domain of ``like`` this often."""
    pool = DOMAINS[DOMAIN_OF[like]] if rng.random() < hard else CONCEPTS
    return pick(rng, [c for c in pool if c not in scene.concepts])


def _draw_yes_no(rng: np.random.Generator, scene: Scene) -> Question:
    concept = pick(rng, [*scene.concepts, scene.concepts[0]])
    present = bool(rng.random() < 0.5)
    if not present:
        concept = absent_concept(rng, scene, concept, HARD_NEGATIVE_SHARE)
    return yes_no(rng, concept, present)


def _draw_naming(rng: np.random.Generator, scene: Scene) -> Question:
    present = [DOMAIN_OF[concept] for concept in scene.concepts]
    absent = [domain for domain in FOREGROUND_DOMAINS if domain not in present]
    if rng.random() < ABSENT_DOMAIN_SHARE:
        return naming(rng, pick(rng, absent), scene)
    # An icon is harder to name than its ground.
    return naming(rng, pick(rng, [present[0], *present]), scene)


def draw_question(rng: np.random.Generator, scene: Scene) -> Question:
    """Draw a question of any kind, in any dress."""
    kind = rng.random()
    suffix = pick(rng, SUFFIXES)
    if kind < DESCRIBE_SHARE:
        text = pick(rng, TRAIN.describe)
        domain = DOMAIN_OF.get(scene.foreground, NOTHING)
        asked = Question(text, answer_description(scene), DESCRIBE, domain)
    elif kind < DESCRIBE_SHARE + NAME_SHARE:
        asked = _draw_naming(rng, scene)
    else:
        asked = _draw_yes_no(rng, scene)
        if rng.random() < SHORT_SHARE:
            suffix = SHORT
            short = "Yes." if asked.kind == YES else "No."
            asked = Question(asked.text, short, asked.kind, asked.domain)
    text = f"{pick(rng, PREFIXES)} {asked.text} {suffix}".strip()
    return Question(text, asked.answer, asked.kind, asked.domain)


def held_out_questions(
    rng: np.random.Generator, scene: Scene, phrasings: Phrasings = HELD_OUT
) -> list[Question]:
    """Ask for every name, one yes and one no of every domain, and a description."""
    found = []
    for concept in scene.concepts:
        domain = DOMAIN_OF[concept]
        text = pick(rng, phrasings.naming[domain])
        found.append(Question(text, answer_name(concept), NAME, domain))
        other = absent_concept(rng, scene, concept, 1.0)
        found.append(yes_no(rng, concept, True, phrasings))
        found.append(yes_no(rng, other, False, phrasings))
    domain = DOMAIN_OF.get(scene.foreground, NOTHING)
    text = pick(rng, phrasings.describe)
    return [*found, Question(text, answer_description(scene), DESCRIBE, domain)]
