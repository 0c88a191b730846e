# SPDX-License-Identifier: Apache-2.0
"""Stage 1: teach the tower to see, as CLIP's pre-training does for LLaVA's.

Linear heads read the residual stream of the penultimate layer, patch by patch
and averaged, and are thrown away afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from tiny.checkpoint import load_progress, save_progress
from tiny.concepts import COLOURS, FOREGROUNDS, MATERIALS
from tiny.dataset import Pictures, pixel_values
from tiny.model import D_VISION, penultimate
from tiny.schedule import warmup_cosine

NUM_FOREGROUNDS = len(FOREGROUNDS) + 1
SIZES = [NUM_FOREGROUNDS, len(COLOURS), len(MATERIALS)]
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class TowerTraining:
    """How the tower is trained."""

    steps: int = 1300
    batch_pictures: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.03
    save_every_steps: int = 200


class Heads(nn.Module):
    """Linear readers of foreground, colour and material."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(D_VISION, sum(SIZES))
        self.picture = nn.Linear(D_VISION, sum(SIZES))

    def loss(self, hidden: Tensor, labels: Tensor, coverage: Tensor) -> Tensor:
        """Return the loss of reading each patch and the average patch.

        Shapes: hidden [num_pictures, 49, d_vision], labels [num_pictures, 3],
        coverage [num_pictures, 49] in [0, 1]
        """
        per_patch = self.patch(hidden).split(SIZES, dim=-1)
        averaged = self.picture(hidden.mean(1)).split(SIZES, dim=-1)
        total = hidden.new_zeros(())
        for kind in range(3):
            target = patch_targets(kind, labels, coverage)
            total = total + cross_entropy(per_patch[kind].transpose(1, 2), target)
            total = total + cross_entropy(averaged[kind], labels[:, kind])
        return total


def patch_targets(kind: int, labels: Tensor, coverage: Tensor) -> Tensor:
    """Return what each patch should show: the icon where it is, else the ground."""
    target = labels[:, kind, None].expand(-1, coverage.shape[1]).clone()
    if kind == 0:
        target[coverage < 0.05] = NUM_FOREGROUNDS - 1
        target[(coverage >= 0.05) & (coverage < 0.3)] = IGNORED
    else:
        target[coverage > 0.6] = IGNORED
    return target


def batch_loss(
    model: LlavaForConditionalGeneration,
    heads: Heads,
    pictures: Pictures,
    rows: NDArray[np.int64],
) -> Tensor:
    """Return the heads' loss on some of the pictures."""
    hidden = penultimate(model, pixel_values(pictures.images[rows]))
    labels = torch.from_numpy(pictures.labels[rows])
    coverage = torch.from_numpy(pictures.coverage[rows]).float() / 255
    return heads.loss(hidden, labels, coverage)


@torch.no_grad()
def picture_accuracy(
    model: LlavaForConditionalGeneration, heads: Heads, pictures: Pictures
) -> list[float]:
    """Return the accuracy of the averaged reading of foreground, colour, material."""
    hidden = penultimate(model, pixel_values(pictures.images))
    parts = heads.picture(hidden.mean(1)).split(SIZES, dim=-1)
    labels = torch.from_numpy(pictures.labels)
    return [
        float((part.argmax(-1) == labels[:, kind]).float().mean())
        for kind, part in enumerate(parts)
    ]


def train_tower(
    model: LlavaForConditionalGeneration,
    pictures: Pictures,
    held_out: Pictures,
    config: TowerTraining,
    folder: Path,
    seed: int,
) -> None:
    """Train the tower in place, resuming from ``folder`` after an interruption."""
    heads = Heads()
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = warmup_cosine(optimizer, config.steps)
    parts = {"tower": tower, "heads": heads, "optim": optimizer, "rate": schedule}
    start = load_progress(folder / "tower.pt", parts)
    order = torch.randperm(
        config.steps * config.batch_pictures,
        generator=torch.Generator().manual_seed(seed),
    ).numpy() % len(pictures)
    with Progress() as progress:
        task = progress.add_task("tower", total=config.steps, completed=start)
        for step in range(start, config.steps):
            size = config.batch_pictures
            rows = order[step * size : (step + 1) * size]
            loss = batch_loss(model, heads, pictures, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1)
            done = step + 1
            if done % config.save_every_steps == 0 or done == config.steps:
                save_progress(folder / "tower.pt", parts, done)
                shares = picture_accuracy(model, heads, held_out)
                text = " ".join(f"{share:.3f}" for share in shares)
                progress.log(f"tower {done}: loss {loss:.3f}, held-out {text}")
