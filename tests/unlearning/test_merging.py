# SPDX-License-Identifier: Apache-2.0
"""No concept takes of another's edit, whatever the two are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unlearning.catalogues import DIGEST
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.merging import Row, check_agreement, merged, rows_at

SITE = "decoder.1"
numbers = st.integers(-8, 8).map(lambda n: n / 4)
strengths = st.sampled_from([0.25, 1.0, 1.5, 10.0])
gates = st.sampled_from([0.0, 0.05, 0.5, 2.0])
edits = st.builds(
    lambda latents, gamma, shift, gate: SiteEdit.uniform(latents, gamma, shift, gate),
    st.sampled_from([(0,), (0, 1), (1, 2)]),
    numbers,
    numbers,
    gates,
)
asked = st.lists(st.tuples(edits, strengths), min_size=2, max_size=4)


def mask_of(given: list[tuple[SiteEdit, float]]) -> tuple[Mask, Catalogue]:
    concepts = [
        Concept(name=str(i), domain="d", edits={SITE: edit})
        for i, (edit, _) in enumerate(given)
    ]
    pairs = [(str(i), strength) for i, (_, strength) in enumerate(given)]
    return Mask.of(pairs, DIGEST), Catalogue(concepts)


def moved(row: Row, z: float) -> float:
    """Return how far an edit moves a latent that fires so strongly."""
    scale, shift, gate = row
    return abs(scale * z + shift) if z > gate else 0.0


@given(asked, st.floats(0, 50))
def test_a_concept_more_never_shrinks_an_edit(
    given: list[tuple[SiteEdit, float]], z: float
) -> None:
    """On no latent, at no activation; or the request is refused."""
    mask, catalogue = mask_of(given)
    try:
        check_agreement(mask, catalogue)
    except InvalidRequestError:
        return
    together = rows_at(mask, catalogue, SITE)
    for pair in mask.concepts:
        alone = rows_at(Mask.of([pair], DIGEST), catalogue, SITE)
        for latent, row in alone.items():
            assert moved(together[latent], z) >= moved(row, z) - 1e-9


@given(st.lists(st.tuples(numbers, numbers, gates), min_size=1, max_size=4))
def test_edits_of_one_way_are_merged_in_it(rows: list[Row]) -> None:
    """Down by the smallest numbers, up by the largest, to the bit."""
    down = [(-abs(scale), -abs(shift), gate) for scale, shift, gate in rows]
    up = [(abs(scale), abs(shift), gate) for scale, shift, gate in rows]
    assert merged(down) == tuple(map(min, zip(*down, strict=True)))
    wanted = [*map(max, list(zip(*up, strict=True))[:2]), min(row[2] for row in up)]
    assert merged(up) == tuple(wanted)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0.0, 6.0, 0.0), (0.0, 0.0, 0.0)], (0.0, 6.0, 0.0)),  # beside an idle one
        ([(4.0, 0.0, 0.0), (0.0, 0.0, 0.0)], (4.0, 0.0, 0.0)),
        ([(4.0, 0.0, 0.0), (-1.0, 0.0, 0.0)], None),
        ([(0.0, 6.0, 0.0), (-1.0, 0.0, 0.0)], None),
        ([(-1.0, 6.0, 0.5), (-1.0, 6.0, 0.0)], (-1.0, 6.0, 0.0)),  # one clamp
        ([(-5.0, -1.0, 0.05), (-3.0, 0.5, 0.0)], (-5.0, -1.0, 0.0)),
        ([(-5.0, -1.0, 0.05), (-30.0, 5.0, 0.0)], (-30.0, -5.0, 0.0)),
        ([(-1.0, 0.5, 1.0), (-1.5, 0.25, 1.0)], (-1.5, 0.25, 1.0)),  # down from a gate
    ],
)
def test_rows(rows: list[Row], wanted: Row | None) -> None:
    assert merged(rows) == merged(rows[::-1]) == wanted


def test_who_contradicts_is_named() -> None:
    up, down = SiteEdit.uniform((1, 5), 3.0), SiteEdit.uniform((5, 9), 0.0)
    mask, catalogue = mask_of([(up, 1.0), (down, 1.0)])
    with pytest.raises(
        InvalidRequestError, match=r"0, 1 move latent 5 at 'decoder\.1'"
    ):
        check_agreement(mask, catalogue)
    for name in catalogue.names():
        check_agreement(Mask.of([(name, 1.0)], DIGEST), catalogue)


def test_edits_of_other_tokens_do_not_meet() -> None:
    up, down = (SiteEdit.uniform((5,), gamma) for gamma in (3.0, 0.0))
    pictures, words = replace(up, tokens=("image",)), replace(down, tokens=("prompt",))
    check_agreement(*mask_of([(pictures, 1.0), (words, 1.0)]))
    both = replace(down, tokens=("image", "prompt"))
    with pytest.raises(InvalidRequestError):
        check_agreement(*mask_of([(pictures, 1.0), (both, 1.0)]))
