# SPDX-License-Identifier: Apache-2.0
"""Train sauce-tiny from nothing: pictures, tower, then projector and Llama.

``PYTHONPATH=examples python -m tiny.train_model``; run it again to resume.
"""

import argparse
import fcntl
import sys
from pathlib import Path
from typing import TextIO

import torch

from tiny.concepts import TRAIN_STYLES
from tiny.dataset import CACHE, HELD_OUT_SEED, draw_pictures, training_pictures
from tiny.export import export
from tiny.language_training import LanguageTraining, train_language
from tiny.model import build_model
from tiny.tower_training import TowerTraining, train_tower


def lock_folder(folder: Path) -> TextIO:
    """Hold a folder until the returned file is closed: two runs would mix there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another run is training in {folder}; wait for it, or give --cache")
    return lock


def main() -> None:
    """Run every stage that is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=TowerTraining.steps)
    parser.add_argument("--language-steps", type=int, default=LanguageTraining.steps)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    # Adam's moments sink into denormals, on which a CPU is a hundred times slower.
    torch.set_flush_denormal(True)
    lock = lock_folder(arguments.cache)
    pictures = training_pictures(arguments.seed, TRAIN_STYLES)
    held_out = draw_pictures(HELD_OUT_SEED, 600, TRAIN_STYLES)
    model = build_model(arguments.seed)
    tower = TowerTraining(steps=arguments.tower_steps)
    train_tower(model, pictures, held_out, tower, arguments.cache, arguments.seed)
    language = LanguageTraining(steps=arguments.language_steps)
    train_language(model, pictures, language, arguments.cache, arguments.seed)
    export(model)
    lock.close()


if __name__ == "__main__":
    main()
