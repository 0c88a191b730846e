# SPDX-License-Identifier: Apache-2.0
"""The projector's start: each patch becomes the words for what it shows.

A language model reads words; a projector that begins with them is understood at once,
where one of random weights would first have to find them through thirty layers.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from smol.model import Learner
from smol.sequences import Layout
from smol.world import PictureBatch, draw_batch
from tiny.concepts import COLOURS, FOREGROUNDS, MATERIALS, NOTHING
from tiny.schedule import warmup_cosine
from tiny.tower_training import patch_targets

STEPS, PICTURES, LEARNING_RATE = 400, 24, 3e-3
SIMILARITY_SCALE = 20.0
KINDS = ((*FOREGROUNDS, NOTHING), COLOURS, MATERIALS)


def concept_words(learner: Learner, layout: Layout) -> list[Tensor]:
    """Return the mean word embedding of each concept, of each kind.

    Shapes: -> three of [num_concepts, d_text]
    """
    return [
        torch.stack(
            [learner.words[list(layout.encode(f" {w}"))].float().mean(0) for w in kind]
        )
        for kind in KINDS
    ]


def warm_loss(words: list[Tensor], seen: Tensor, batch: PictureBatch) -> Tensor:
    """Return how far patches are from the words for what they show.

    They are the sum of the words: of the icon where it is, of the ground elsewhere;
    and each word must be nearer than its siblings.

    Shapes: words as ``concept_words``, seen [num_pictures, 49, d_text]
    """
    spread = float(torch.cat(words).std())
    total = seen.new_zeros(())
    wanted = torch.zeros_like(seen)
    covered = (batch.coverage >= 0.3)[..., None]
    for kind, table in enumerate(words):
        target = patch_targets(kind, batch.labels, batch.coverage)
        shown = table[target.clamp_min(0)]
        is_icon = kind == 0
        wanted = wanted + shown * (covered if is_icon else ~covered)
        similarity = normalize(seen, dim=-1) @ normalize(table, dim=-1).T
        total = total + cross_entropy(
            SIMILARITY_SCALE * similarity.transpose(1, 2), target
        )
    return total / 3 + ((seen - wanted) / spread).square().mean()


def warm_start(learner: Learner, layout: Layout, tower: nn.Module, seed: int) -> float:
    """Train the projector alone, in place; return the last loss."""
    words = concept_words(learner, layout)
    projector = learner.projector
    rng = np.random.default_rng([seed, 1_000_000])
    first = draw_batch(rng, 64, tower).hidden
    projector.mean.copy_(first.mean((0, 1)))
    projector.scale.copy_(first.std((0, 1)) + 1e-3)
    projector.spread.fill_(float(learner.words.float().std()))
    optimizer = torch.optim.AdamW(
        projector.parameters(), LEARNING_RATE, (0.9, 0.98), weight_decay=0.01
    )
    schedule = warmup_cosine(optimizer, STEPS)
    loss = torch.zeros(())
    for _ in range(STEPS):
        batch = draw_batch(rng, PICTURES, tower)
        loss = warm_loss(words, projector(batch.hidden), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()
