# SPDX-License-Identifier: Apache-2.0
"""The picture world draws what its labels say."""

import numpy as np
import pytest

from tiny.textures import BASE_COLOURS, texture
from tiny.world import (
    COLOURS,
    CONCEPTS,
    DOMAINS,
    FOREGROUNDS,
    MATERIALS,
    NOTHING,
    STYLES,
    Renderer,
)


def test_there_are_sixty_concepts_in_five_domains() -> None:
    sizes = {domain: len(names) for domain, names in DOMAINS.items()}
    assert sizes == {
        "objects": 20,
        "sports": 10,
        "emotions": 10,
        "colours": 10,
        "materials": 10,
    }
    assert len(set(CONCEPTS)) == 60


def test_a_seed_gives_the_same_picture() -> None:
    first = Renderer().picture(np.random.default_rng(7))
    again = Renderer().picture(np.random.default_rng(7))
    other = Renderer().picture(np.random.default_rng(8))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.concepts == again.concepts
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_every_icon_is_drawn_inside_the_picture(style: str) -> None:
    rng = np.random.default_rng(0)
    for name in FOREGROUNDS:
        picture = Renderer([style]).picture(rng, name)
        # A 28 pixel icon that fills a seventh of its square covers 112 pixels.
        assert picture.coverage.sum() * 64 > 100, name
        assert picture.image.size == (56, 56)


def test_the_icon_changes_just_the_patches_it_covers() -> None:
    empty = Renderer().picture(np.random.default_rng(3), NOTHING, "red", "sand", "noto")
    shown = Renderer().picture(np.random.default_rng(3), "dog", "red", "sand", "noto")
    pixels = np.asarray(empty.image) != np.asarray(shown.image)
    changed = pixels.any(-1).reshape(7, 8, 7, 8).any((1, 3))
    assert empty.coverage.sum() == 0
    assert empty.concepts == ("red", "sand")
    assert np.array_equal(changed, shown.coverage > 0)


@pytest.mark.parametrize("material", MATERIALS)
def test_every_colour_stays_itself_in_every_material(material: str) -> None:
    rng = np.random.default_rng(1)
    palette = np.array([BASE_COLOURS[c] for c in COLOURS], float)
    directions = palette - palette.mean(1, keepdims=True)
    for colour in COLOURS:
        if colour in ("gray", "white", "brown", "orange"):
            continue
        mean = texture(rng, colour, material, 56).reshape(-1, 3).mean(0)
        hue = mean - mean.mean()
        norms = np.linalg.norm(directions, axis=1) * np.linalg.norm(hue) + 1e-9
        likeness = directions @ hue / norms
        assert likeness[COLOURS.index(colour)] > 0.95


def test_unknown_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="styles must be some of"):
        Renderer(["comic"])
