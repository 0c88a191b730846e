# SPDX-License-Identifier: Apache-2.0
"""Write what a user of ``sauce learn`` would have: twenty concepts, pictures, labels.

``PYTHONPATH=examples python -m smol.user_pictures FOLDER`` draws pictures in which some
of sauce-tiny's sixty concepts are labelled (``concepts.yaml``), and others without
labels, each with a question, for training SAEs (``training.jsonl``).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from smol.questions import draw_question
from smol.world import scene_of
from tiny.concepts import DOMAIN_OF, FOREGROUNDS, NOTHING, TRAIN_STYLES
from tiny.dataset import HELD_OUT_SEED
from tiny.user_pictures import concepts_yaml, write_labelled
from tiny.world import Picture, Renderer

CHOSEN = (
    *("dog", "cat", "horse", "car", "bicycle", "guitar", "umbrella", "pizza"),
    *("soccer", "tennis", "boxing"),
    *("happiness", "anger", "fear"),
    *("red", "blue", "yellow"),
    *("wood", "brick", "water"),
)
SEED = HELD_OUT_SEED + 1_500
SPLITS = {"selection": 0.5, "calibration": 0.3, "scoring": 0.2}


def labelled(per_concept: int, per_other: int, empty: int) -> list[Picture]:
    """Draw pictures of every foreground, most of the chosen ones, and of none."""
    rng = np.random.default_rng(SEED)
    renderer = Renderer(TRAIN_STYLES)
    counts = {
        name: per_concept if name in CHOSEN else per_other for name in FOREGROUNDS
    }
    counts[NOTHING] = empty
    names = [name for name, count in counts.items() for _ in range(count)]
    return [renderer.picture(rng, name) for name in names]


def unlabelled(count: int) -> Iterator[tuple[Picture, str]]:
    """Draw pictures of anything, each with a question."""
    rng = np.random.default_rng(SEED + 1)
    renderer = Renderer(TRAIN_STYLES)
    for _ in range(count):
        picture = renderer.picture(rng)
        yield picture, draw_question(rng, scene_of(picture)).text


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="A new folder.")
    parser.add_argument("--per-concept", type=int, default=60)
    parser.add_argument("--per-other", type=int, default=6)
    parser.add_argument("--empty", type=int, default=60)
    parser.add_argument("--training", type=int, default=2000)
    arguments = parser.parse_args()
    folder = arguments.folder
    counts = (arguments.per_concept, arguments.per_other, arguments.empty)
    write_labelled(folder, labelled(*counts))
    told = concepts_yaml() | {"splits": SPLITS}
    concepts = told["concepts"]
    assert isinstance(concepts, dict)
    told["concepts"] = {name: concepts[name] for name in CHOSEN}
    asked = told["questions"]
    assert isinstance(asked, dict)
    domains = {DOMAIN_OF[name] for name in CHOSEN}
    told["questions"] = {d: asked[d] for d in asked if d in domains}
    text = yaml.safe_dump(told, sort_keys=False, width=88)
    (folder / "concepts.yaml").write_text(text)
    (folder / "training").mkdir()
    rows = []
    for number, (picture, question) in enumerate(unlabelled(arguments.training)):
        file = f"training/{number:05d}.png"
        picture.image.save(folder / file)
        rows.append(json.dumps({"image": file, "prompt": question}))
    (folder / "training.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
