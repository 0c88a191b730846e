# SPDX-License-Identifier: Apache-2.0
"""The probe finds what is there in a direction, and nothing where nothing is."""

import pytest
import torch

from tests.places import TINY
from tiny.exam import Tiny
from tiny.probe import Shown, area, naming_sheet, probe, states
from vllm_sauce.bundle import Bundle
from vllm_sauce.models.shared_prefix import SharedPrefix

SIZE = 400


def test_the_area_counts_pairs_and_halves_ties() -> None:
    shows = torch.tensor([True, True, False, False])
    assert area(torch.tensor([4.0, 2.0, 1.0, 3.0]), shows) == 3 / 4
    assert area(torch.tensor([1.0, 1.0, 1.0, 0.0]), shows) == (0.5 + 1 + 0.5 + 1) / 4


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.35, 0.65), (3.0, 0.95, 1)])
def test_what_one_direction_tells_is_found(shift, low, high) -> None:
    """However small it is beside what the others vary by."""
    rng = torch.Generator().manual_seed(0)
    shows = torch.arange(SIZE) % 4 < 2
    x = torch.randn(2, SIZE, 8, generator=rng)
    x[..., 5] += shift * shows
    x *= torch.tensor([100.0, 1, 1, 1, 1, 0.01, 1, 0])
    assert low <= probe(x[0], shows, x[1], shows) <= high


def test_it_reads_behind_the_edit() -> None:
    tiny = Tiny.load()
    shown = Shown.draw(tiny, "quality", 1)
    vision, shows = shown.of_domain("dog")
    assert 0 < int(shows.sum()) < len(vision) < len(shown.vision)
    bundle = Bundle.load(TINY / "bundle")
    saes = {site: one.weights for site, one in bundle.sites.items()}
    edits = bundle.catalogue.concept("dog").edits
    runner, sheet = SharedPrefix(tiny.model), naming_sheet(tiny, "dog", len(vision))
    plain = states(runner, sheet, vision, {}, {})
    edited = states(runner, sheet, vision, saes, edits)
    pooled = torch.cat([vision.mean(1), vision.amax(1)], -1)
    assert torch.equal(plain[0], pooled)
    changed = [(one != other).any(-1) for one, other in zip(plain, edited, strict=True)]
    assert bool(changed[1][shows].all())
    assert "vision" not in edits or bool(changed[0][shows].all())
