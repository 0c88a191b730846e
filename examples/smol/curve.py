# SPDX-License-Identifier: Apache-2.0
"""Points of the learning curve: held-out phrasings about held-out pictures.

A greedy answer is right to the letter if each of its tokens is the likeliest after the
right ones before it, so that nothing has to be generated.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from smol.model import Learner
from smol.questions import DESCRIBE, NO, YES, held_out_questions
from smol.sequences import Layout, collate
from smol.world import see
from tiny.concepts import FOREGROUNDS, TRAIN_STYLES
from tiny.dataset import HELD_OUT_SEED
from tiny.world import Renderer

CURVE_SEED = HELD_OUT_SEED + 900
PICTURES, BATCH = 40, 8


@torch.no_grad()
def curve_point(
    learner: Learner, layout: Layout, tower: Any, pictures: int = PICTURES
) -> dict[str, list[int]]:
    """Return by kind of question how many answers are right, and of how many.

    Naming is counted by domain.
    """
    rng = np.random.default_rng(CURVE_SEED)
    renderer = Renderer(TRAIN_STYLES)
    drawn = [
        renderer.picture(rng, FOREGROUNDS[i % len(FOREGROUNDS)])
        for i in range(pictures)
    ]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for start in range(0, pictures, BATCH):
        batch = see(drawn[start : start + BATCH], tower)
        asked = [held_out_questions(rng, scene) for scene in batch.scenes]
        rows = [
            layout.picture_row([(q.text, q.answer) for q in page]) for page in asked
        ]
        made = collate(rows)
        hidden = learner(
            made.ids, made.positions, made.mask, batch.hidden, layout.image_start
        )
        hit = learner.head(hidden[made.predicts]).argmax(-1) == made.targets
        row_of = made.predicts.nonzero()[:, 0]
        for row, page in enumerate(asked):
            for number, question in enumerate(page):
                here = (row_of == row) & (made.answers == number)
                whole = question.kind in (YES, NO, DESCRIBE)
                count = counts[question.kind if whole else question.domain]
                count[0] += int(hit[here].all())
                count[1] += 1
    return dict(counts)
