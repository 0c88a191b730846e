# SPDX-License-Identifier: Apache-2.0
"""What the language model is taught, besides its answers."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from tiny.concepts import CONCEPTS
from tiny.conversations import Scene, draw_sequence, hint_ids
from tiny.language_training import (
    IMAGE_START,
    LABEL_IDS,
    SIMILARITY_SCALE,
    alignment_loss,
    collate,
)
from tiny.model import NUM_PATCHES
from tiny.questions import NO, YES
from tiny.vocabulary import IMAGE, encode, token_id, vocabulary


def test_a_concepts_name_in_a_question_must_know_whether_it_is_shown() -> None:
    scene = Scene("dog", "blue", "wood")
    asked = encode("Is there a dog on red wood?")
    yes, no = token_id(YES), token_id(NO)
    assert hint_ids(scene, asked) == [-1, -1, -1, yes, -1, no, yes, -1]


@pytest.mark.parametrize("seed", range(20))
def test_every_hint_is_true(seed: int) -> None:
    scene = Scene("guitar", "white", "sand")
    sequence = draw_sequence(np.random.default_rng(seed), scene, 6)
    words = vocabulary()
    for id_, hint, answer in zip(
        sequence.ids, sequence.hints, sequence.answers, strict=True
    ):
        if words[id_] in CONCEPTS and not answer:
            assert words[hint] == (YES if words[id_] in scene.concepts else NO)
        else:
            assert hint == -1


def test_the_image_is_where_training_puts_it() -> None:
    sequence = draw_sequence(np.random.default_rng(0), Scene("dog", "red", "tile"), 2)
    batch = collate([sequence])
    places = (batch.ids[0] == token_id(IMAGE)).nonzero()[:, 0]
    assert places.tolist() == list(range(IMAGE_START, IMAGE_START + NUM_PATCHES))


def aligned(patch_words: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one-hot words and an image whose patches point at some of them."""
    words = torch.eye(len(vocabulary()))
    image = sum(one_hot(torch.tensor([w]), len(words)).float() for w in patch_words)
    assert isinstance(image, torch.Tensor)
    return words, image.expand(1, NUM_PATCHES, -1)


def test_patches_that_point_at_their_words_have_no_loss() -> None:
    labels = torch.tensor([[3, 5, 7]])
    coverage = torch.full((1, NUM_PATCHES), 0.5)
    right = [int(ids[label]) for ids, label in zip(LABEL_IDS, labels[0], strict=True)]
    wrong = [int(ids[0]) for ids in LABEL_IDS]
    good = alignment_loss(*aligned(right), labels, coverage)
    bad = alignment_loss(*aligned(wrong), labels, coverage)
    assert float(good) < 1e-6
    # Each of three kinds misses by the whole similarity.
    assert float(bad) == pytest.approx(3 * SIMILARITY_SCALE / 3**0.5, rel=1e-3)
