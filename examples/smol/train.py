# SPDX-License-Identifier: Apache-2.0
"""Teach SmolLM2 to see: train a projector and LoRA, a picture at a time.

``PYTHONPATH=examples python -m smol.train --language SMOLLM2`` where SMOLLM2 is what
``python -m smollm2.convert`` wrote. Run it again to go on; ``curve.jsonl`` in its
folder is the curve.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from smol.curve import curve_point
from smol.model import Learner
from smol.questions import draw_question
from smol.sequences import Layout, Row, collate
from smol.text_turns import TRAIN, TextTurn, teach
from smol.warm_start import warm_start
from smol.weights import save_weights
from smol.world import PictureBatch, draw_batch, load_tower
from tiny.checkpoint import load_progress, save_progress
from tiny.train_model import lock_folder

CACHE = Path(__file__).parent / ".cache"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model is trained."""

    steps: int = 500
    decay_steps: int = 200
    """The last steps, over which the learning rate falls to zero."""
    pictures: int = 6
    turns: int = 6
    """Questions asked about each picture."""
    text_turns: int = 6
    text_every_steps: int = 3
    projector_rate: float = 1e-3
    lora_rate: float = 2e-3
    conversation_share: float = 0.1
    save_every_steps: int = 25
    measure_every_steps: int = 100

    def rate(self, step: int) -> float:
        """Return the share of the learning rates at a step."""
        left = (self.steps - step) / max(self.decay_steps, 1)
        return min(1.0, (step + 1) / 20, left)


def picture_rows(
    rng: np.random.Generator, layout: Layout, batch: PictureBatch, config: Training
) -> list[Row]:
    """Draw the questions about each picture of a batch."""
    rows = []
    for scene in batch.scenes:
        drawn = [draw_question(rng, scene) for _ in range(config.turns)]
        conversation = bool(rng.random() < config.conversation_share)
        turns = [(question.text, question.answer) for question in drawn]
        rows.append(layout.picture_row(turns, conversation))
    return rows


def losses(
    learner: Learner,
    layout: Layout,
    rows: Sequence[Row],
    image: Tensor,
    text: Sequence[TextTurn],
) -> tuple[Tensor, Tensor]:
    """Return the loss of the answers, and how far the text answers have moved.

    Shapes: image [len(rows), num_patches, d_vision]
    """
    spoken = [layout.text_row([(t.question, t.said) for t in text])] if text else []
    batch = collate([*rows, *spoken])
    hidden = learner(batch.ids, batch.positions, batch.mask, image, layout.image_start)
    logits = learner.head(hidden[batch.predicts]).float()
    about_pictures = int(batch.predicts[: len(rows)].sum())
    loss = cross_entropy(logits[:about_pictures], batch.targets[:about_pictures])
    if not text:
        return loss, torch.zeros(())
    with torch.no_grad():
        before = learner.head(torch.cat([turn.hidden for turn in text])).float()
    now, before = log_softmax(logits[about_pictures:], -1), log_softmax(before, -1)
    return loss, kl_div(now, before, reduction="batchmean", log_target=True)


class Trainer:
    """A run that may be interrupted."""

    def __init__(self, language: Path, folder: Path, seed: int, config: Training):
        self.config, self.folder, self.seed = config, folder, seed
        self.layout = Layout(language)
        self.learner = Learner(language, seed)
        self.text = teach(self.learner, self.layout, TRAIN, folder)
        self.tower: Any = load_tower()
        self.learner.add_lora()
        projector = self.learner.projector
        loras = nn.ModuleList([lora for _, lora in self.learner.loras()])
        self.parameters = [*projector.parameters(), *loras.parameters()]
        groups = [
            {"params": list(projector.parameters()), "lr": config.projector_rate},
            {"params": list(loras.parameters()), "lr": config.lora_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = {"projector": projector, "lora": loras, "optim": self.optimizer}

    def note(self, **values: Any) -> None:
        """Add a line to the curve."""
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def step(self, step: int) -> None:
        """Take one step, whose draws depend on its number alone."""
        started, config = time.monotonic(), self.config
        rng = np.random.default_rng([self.seed, step])
        batch = draw_batch(rng, config.pictures, self.tower)
        rows = picture_rows(rng, self.layout, batch, config)
        text: list[TextTurn] = []
        if step % config.text_every_steps == 0:
            drawn = rng.choice(len(self.text), config.text_turns, replace=False)
            text = [self.text[i] for i in drawn]
        loss, moved = losses(self.learner, self.layout, rows, batch.hidden, text)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + moved).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rates = (config.projector_rate, config.lora_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * config.rate(step)
        self.optimizer.step()
        self.note(
            step=step + 1,
            loss=round(loss.item(), 4),
            text_kl=round(moved.item(), 4) if text else None,
            gradient=round(float(norm), 3),
            seconds=round(time.monotonic() - started, 2),
            threads=torch.get_num_threads(),
        )

    def run(self) -> None:
        """Go on to the last step."""
        start = load_progress(self.folder / "run.pt", self.parts)
        if start == 0:
            loss = warm_start(self.learner, self.layout, self.tower, self.seed)
            self.note(step=0, warm_start=round(loss, 4))
        for step in range(start, self.config.steps):
            self.step(step)
            done = step + 1
            last = done == self.config.steps
            if last or done % self.config.save_every_steps == 0:
                save_progress(self.folder / "run.pt", self.parts, done)
            if last or done % self.config.measure_every_steps == 0:
                scores = curve_point(self.learner, self.layout, self.tower)
                self.note(step=done, held_out=scores)
        save_weights(self.learner, self.folder / "weights.safetensors")


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=CACHE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--decay-steps", type=int, default=Training.decay_steps)
    arguments = parser.parse_args()
    # Adam's moments sink into denormals, on which a CPU is a hundred times slower.
    torch.set_flush_denormal(True)
    lock = lock_folder(arguments.folder)
    config = Training(steps=arguments.steps, decay_steps=arguments.decay_steps)
    trainer = Trainer(arguments.language, arguments.folder, arguments.seed, config)
    trainer.run()
    lock.close()


if __name__ == "__main__":
    main()
