# SPDX-License-Identifier: Apache-2.0
"""The shipped model is the one that was measured, and answers as well."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tiny.concepts import CONCEPTS, DOMAINS, HELD_OUT_STYLE, TRAIN_STYLES
from tiny.dataset import pixel_values
from tiny.evaluate import TinyModel, accuracy, ask, evaluation_pictures
from tiny.export import MODEL_FOLDER, WEIGHTS, weights_digest
from tiny.model import penultimate
from tiny.pictures import LABELS, PICTURE_FOLDER, draw_shipped, shipped_pictures
from tiny.questions import HELD_OUT, TRAIN
from tiny.world import Picture

MAX_MODEL_BYTES = 16_000_000


@pytest.fixture(scope="module")
def tiny_model() -> Iterator[TinyModel]:
    yield TinyModel()


def test_the_weights_are_the_recorded_ones() -> None:
    recorded = (MODEL_FOLDER / "SHA256").read_text().split()
    assert recorded == [weights_digest(MODEL_FOLDER), WEIGHTS]


def test_the_checkpoint_is_small_and_public_in_layout() -> None:
    sizes = [file.stat().st_size for file in MODEL_FOLDER.iterdir()]
    assert sum(sizes) <= MAX_MODEL_BYTES
    with safe_open(MODEL_FOLDER / WEIGHTS, "pt") as weights:
        names = list(weights.keys())
    towers = [name for name in names if "vision_tower" in name]
    assert towers
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["vision_feature_layer"] == -2


def test_the_processor_normalises_as_training_did(tiny_model: TinyModel) -> None:
    picture = next(draw_shipped())
    inputs = tiny_model.processor(
        images=picture.image, text=tiny_model.prompt("Hm?"), return_tensors="pt"
    )
    trained = pixel_values(np.asarray(picture.image)[None].copy())
    assert torch.allclose(inputs["pixel_values"], trained, atol=1e-5)
    with torch.no_grad():
        tower = tiny_model.model.model.vision_tower
        states = tower(trained, output_hidden_states=True).hidden_states
        read = penultimate(tiny_model.model, trained)
    assert torch.allclose(states[-2][:, 1:], read, atol=1e-5)


def test_shipped_pictures_cover_every_concept() -> None:
    pictures = shipped_pictures()
    seen = [concept for picture in pictures for concept in picture.concepts]
    assert min(seen.count(concept) for concept in CONCEPTS) >= 5
    styles = {picture.style for picture in pictures}
    assert styles == {*TRAIN_STYLES, HELD_OUT_STYLE}
    files = {file.name for file in PICTURE_FOLDER.iterdir()} - {LABELS}
    assert files == {picture.file.name for picture in pictures}


def test_shipped_pictures_can_be_drawn_again() -> None:
    for shipped, drawn in zip(shipped_pictures(), draw_shipped(), strict=True):
        assert shipped.image.tobytes() == drawn.image.tobytes()
        assert shipped.concepts == drawn.concepts


def check_figures(shares: dict[tuple[str, str], float]) -> None:
    assert shares["name", "all"] >= 0.95, shares
    assert shares["yes/no", "all"] >= 0.95, shares
    for kind in ("name", "yes/no"):
        for domain in DOMAINS:
            assert shares[kind, domain] >= 0.90, (kind, domain, shares)


def test_answers_about_the_shipped_pictures(tiny_model: TinyModel) -> None:
    shipped = [p for p in shipped_pictures()[::2] if p.style in TRAIN_STYLES]
    pictures = [
        Picture(
            p.image,
            p.foreground,
            p.colour,
            p.material,
            p.style,
            np.zeros((7, 7), np.float32),
        )
        for p in shipped
    ]
    check_figures(accuracy(tiny_model, ask(pictures, TRAIN)))


def test_answers_to_unseen_phrasings_about_new_pictures(tiny_model: TinyModel) -> None:
    pictures = evaluation_pictures(TRAIN_STYLES, per_concept=3)
    check_figures(accuracy(tiny_model, ask(pictures, HELD_OUT)))
