# SPDX-License-Identifier: Apache-2.0
"""Write what a user of ``sauce learn`` would have: pictures, labels, concepts.yaml.

``PYTHONPATH=examples python -m tiny.user_pictures FOLDER`` draws 150 pictures of each
of the 40 foreground concepts, and 300 without any, for ``concepts.yaml``, and 8,000
without labels, each with a question, for training SAEs (``training.jsonl``). None of
the labelled ones is among the model's. ``--style held-out`` draws them in a style that
the model has never seen; ``--drawn scoring`` draws others, which no bundle here was
learnt on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tiny.concepts import CONCEPTS, DOMAIN_OF, DOMAINS
from tiny.dataset import HELD_OUT_SEED, training_pictures
from tiny.exam import SEEDS, STYLES, balanced_pictures
from tiny.questions import (
    TRAIN,
    describe_questions,
    naming_questions,
    yes_no_questions,
)
from tiny.world import NOTHING, Picture, Renderer

SPLITS = {"selection": 0.2, "calibration": 0.6, "scoring": 0.2}
DESCRIBE = "Describe the picture."


def concepts_yaml() -> dict[str, object]:
    """Return what sauce-tiny knows, in every wording that it was taught."""
    place = {domain: "{concept}" for domain in DOMAINS} | {"objects": "{a concept}"}
    questions = {
        domain: {
            "name": naming_questions(domain),
            "exists": [t.replace("{x}", place[domain]) for t in TRAIN.yes_no[domain]],
        }
        for domain in DOMAINS
    }
    concepts = {
        name: {
            "domain": DOMAIN_OF[name],
            # The second puts the concept's word among the tokens.
            "prompts": [DESCRIBE, yes_no_questions(name)[0]],
        }
        for name in CONCEPTS
    }
    return {
        "version": 1,
        "splits": SPLITS,
        "pictures": {"jsonl": "labels.jsonl", "image": "file", "concepts": "concepts"},
        "questions": questions,
        "concepts": concepts,
    }


def empty_pictures(
    count: int, style: str = "train", drawn: str = "user"
) -> list[Picture]:
    """Draw pictures of a background alone: what it looks like when nothing is there."""
    rng = np.random.default_rng([HELD_OUT_SEED, SEEDS[drawn]])
    renderer = Renderer(STYLES[style])
    return [renderer.picture(rng, NOTHING) for _ in range(count)]


def write_labelled(folder: Path, pictures: Sequence[Picture], minimum: int = 8) -> None:
    """Write pictures, labels.jsonl and concepts.yaml.

    ``minimum``: examples that a split must have of each concept.
    """
    (folder / "labelled").mkdir(parents=True)
    rows = []
    for number, picture in enumerate(pictures):
        file = f"labelled/{number:05d}.png"
        assert picture.image is not None
        picture.image.save(folder / file)
        rows.append(json.dumps({"file": file, "concepts": list(picture.concepts)}))
    (folder / "labels.jsonl").write_text("\n".join(rows) + "\n")
    told = concepts_yaml() | {"minimum": minimum}
    text = yaml.safe_dump(told, sort_keys=False, width=88)
    (folder / "concepts.yaml").write_text(text)


def write_training(folder: Path, count: int, seed: int) -> None:
    """Write pictures that the model was trained on, each with one question."""
    (folder / "training").mkdir(parents=True)
    pictures = training_pictures(0, STYLES["train"])
    rng = np.random.default_rng(seed)
    asked = [*describe_questions()]
    asked += [q for domain in DOMAINS for q in naming_questions(domain)]
    rows = []
    for row in rng.permutation(len(pictures))[:count]:
        file = f"training/{row:06d}.png"
        Image.fromarray(pictures.images[row]).save(folder / file)
        # Half of the questions name a concept that may be there or not.
        concept = CONCEPTS[rng.integers(len(CONCEPTS))]
        kinds = asked, yes_no_questions(concept)
        questions = kinds[rng.integers(2)]
        prompt = questions[rng.integers(len(questions))]
        rows.append(json.dumps({"image": file, "prompt": prompt}))
    (folder / "training.jsonl").write_text("\n".join(rows) + "\n")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="A new folder.")
    parser.add_argument("--per-foreground", type=int, default=150)
    parser.add_argument("--empty", type=int, default=300)
    parser.add_argument("--training", type=int, default=8000)
    parser.add_argument("--style", choices=STYLES, default="train")
    parser.add_argument("--drawn", choices=SEEDS, default="user")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=False)
    style = arguments.style
    pictures = balanced_pictures(arguments.drawn, arguments.per_foreground, style)
    pictures += empty_pictures(arguments.empty, style, arguments.drawn)
    write_labelled(arguments.folder, pictures)
    write_training(arguments.folder, arguments.training, arguments.seed)


if __name__ == "__main__":
    main()
