# SPDX-License-Identifier: Apache-2.0
"""Questions about a picture and their answers, in many phrasings.

``TRAIN`` phrasings are learnt; ``HELD_OUT`` ones are only ever used to measure.
"""

import re
from dataclasses import dataclass

from tiny.concepts import CONCEPTS, DOMAIN_OF, NOTHING
from tiny.world import Picture

YES, NO, NONE = "yes", "no", "none"


@dataclass(frozen=True)
class Phrasings:
    """Question templates; ``{x}`` is a concept, with an article if it has one."""

    naming: dict[str, tuple[str, ...]]
    yes_no: dict[str, tuple[str, ...]]
    describe: tuple[str, ...]


_FOREGROUND_YES_NO = (
    "Is there {x} in the picture?",
    "Is there {x} in this image?",
    "Is there {x}?",
    "Do you see {x} in the picture?",
    "Can you see {x}?",
    "Does the picture show {x}?",
    "Does this image contain {x}?",
    "Is {x} visible in the image?",
    "Is {x} shown here?",
    "Tell me whether there is {x} in the picture.",
)

TRAIN = Phrasings(
    naming={
        "objects": (
            "What object is in the picture?",
            "Which object is this?",
            "Which object do you see in the image?",
            "What is the object shown here?",
            "Name the object in the picture.",
            "What thing is in the image?",
            "What object does the picture show?",
            "Tell me the object you see.",
            "Which object is shown in the picture?",
            "What object can you see here?",
        ),
        "sports": (
            "What sport is in the picture?",
            "Which sport is this?",
            "Which sport do you see in the image?",
            "What is the sport shown here?",
            "Name the sport in the picture.",
            "What game is in the image?",
            "What sport does the picture show?",
            "Tell me the sport you see.",
            "Which sport is shown in the picture?",
            "What sport can you see here?",
        ),
        "emotions": (
            "What emotion is in the picture?",
            "Which emotion is this?",
            "Which emotion do you see in the image?",
            "What is the emotion shown here?",
            "Name the emotion in the picture.",
            "What feeling is in the image?",
            "What emotion does the face show?",
            "Tell me the emotion you see.",
            "Which emotion is shown in the picture?",
            "What emotion can you see here?",
            "How does the face feel?",
        ),
        "colours": (
            "What color is in the picture?",
            "Which colour is this?",
            "What color is the background?",
            "What colour is the background?",
            "Which color does the background have?",
            "Name the color of the background.",
            "What is the colour of the image?",
            "Tell me the color you see.",
            "Which colour do you see in the image?",
            "Which color is shown in the picture?",
            "What colour can you see here?",
        ),
        "materials": (
            "What material is in the picture?",
            "Which material is this?",
            "What material is the background?",
            "What is the background made of?",
            "Which material does the background have?",
            "Name the material of the background.",
            "What is the material of the image?",
            "Tell me the material you see.",
            "Which material do you see in the image?",
            "Which material is shown in the picture?",
            "What material can you see here?",
            "What texture is the background?",
        ),
    },
    yes_no={
        "objects": _FOREGROUND_YES_NO,
        "sports": (*_FOREGROUND_YES_NO, "Is this sport {x}?", "Is this {x}?"),
        "emotions": (
            *_FOREGROUND_YES_NO,
            "Does the face show {x}?",
            "Is the emotion {x}?",
        ),
        "colours": (
            *_FOREGROUND_YES_NO,
            "Is the background {x}?",
            "Is the color of the background {x}?",
            "Is the colour {x}?",
        ),
        "materials": (
            *_FOREGROUND_YES_NO,
            "Is the background made of {x}?",
            "Is the material {x}?",
            "Is the background {x}?",
        ),
    },
    describe=(
        "Describe the picture.",
        "Describe this image.",
        "What is in the picture?",
        "What do you see?",
        "What does the image show?",
        "What is shown in this picture?",
        "Tell me what you see in the image.",
        "Give a description of the picture.",
        "Write a caption for the image.",
    ),
)

HELD_OUT = Phrasings(
    naming={
        "objects": ("Which object does this image contain?", "Name the thing you see."),
        "sports": ("Which sport does this image contain?", "Name the game you see."),
        "emotions": ("Which emotion does the image show?", "Name the feeling you see."),
        "colours": ("What is the color of the background?", "Name the colour you see."),
        "materials": (
            "What is the material of the background?",
            "Which material do you see in the picture?",
        ),
    },
    yes_no={
        domain: ("Do you see {x} here?", "Does the image show {x}?")
        for domain in ("objects", "sports", "emotions", "colours", "materials")
    },
    describe=("What can you see in this picture?", "Give a caption of this image."),
)

PREFIXES = ("", "", "", "Please look at the picture.", "Hello!", "Please,", "Look:")
SUFFIXES = ("", "", "", "Answer with one word.", "Please.", "Answer the question.")
YES_NO_SUFFIXES = ("", "", "", "Answer yes or no.", "Please.", "Answer the question.")


def with_article(concept: str) -> str:
    """Return ``a dog`` for an object and the bare word for anything else."""
    if DOMAIN_OF.get(concept) != "objects":
        return concept
    return f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}"


def naming_questions(domain: str, phrasings: Phrasings = TRAIN) -> list[str]:
    """Return the questions that ask for the name of a domain's concept."""
    return list(phrasings.naming[domain])


def yes_no_questions(concept: str, phrasings: Phrasings = TRAIN) -> list[str]:
    """Return the questions whether a concept is in the picture."""
    templates = phrasings.yes_no[DOMAIN_OF[concept]]
    return [template.format(x=with_article(concept)) for template in templates]


def describe_questions(phrasings: Phrasings = TRAIN) -> list[str]:
    """Return the requests for a description."""
    return list(phrasings.describe)


def answer_name(concept: str) -> str:
    """Return the one-token answer that names a concept."""
    return concept


def answer_description(foreground: str, colour: str, material: str) -> str:
    """Return a description, such as ``a dog on blue wood``."""
    domain = DOMAIN_OF.get(foreground)
    if domain == "sports":
        subject = f"a {foreground} scene"
    elif domain == "emotions":
        subject = f"a face of {foreground}"
    else:
        subject = NOTHING if foreground == NOTHING else with_article(foreground)
    return f"{subject} on {colour} {material}"


def describe(picture: Picture) -> str:
    """Return the right description of a picture."""
    return answer_description(picture.foreground, picture.colour, picture.material)


def mentions(text: str, concept: str) -> bool:
    """Tell whether a text names a concept, as a whole word in any case."""
    return re.search(rf"\b{re.escape(concept)}\b", text.lower()) is not None


def _train_words() -> tuple[str, ...]:
    texts = [*TRAIN.describe, *PREFIXES, *SUFFIXES, *YES_NO_SUFFIXES]
    texts += [q for questions in TRAIN.naming.values() for q in questions]
    texts += [q for concept in CONCEPTS for q in yes_no_questions(concept)]
    texts += ["USER: ASSISTANT: a face of scene on nothing none yes no ' s"]
    texts += ["system: do not mention forget about it and , . ! ? : ;"]
    words = {w for text in texts for w in re.findall(r"\w+|[^\w\s]", text.lower())}
    return tuple(sorted(words))


TRAIN_WORDS = _train_words()
"""Every word of the training phrasings and of the answers."""
