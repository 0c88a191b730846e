# SPDX-License-Identifier: Apache-2.0
"""What ``sauce diff`` says."""

from __future__ import annotations

from dataclasses import replace

from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.bundle.difference import differences
from vllm_sauce.concepts import Catalogue, SiteEdit

SHIPPED = TINY / "latents"


def changed(old: Bundle, **concepts: object) -> Bundle:
    """Return the bundle with some concepts replaced; None removes."""
    kept = {**old.catalogue, **concepts}
    weights = {name: site.weights for name, site in old.sites.items()}
    found = [concept for concept in kept.values() if concept is not None]
    return Bundle.build(old.fingerprint, weights, Catalogue(found))  # type: ignore[arg-type]


def test_equal_bundles_do_not_differ() -> None:
    bundle = Bundle.load(SHIPPED, weights=False)
    assert differences(bundle, Bundle.load(SHIPPED, weights=False)) == ()


def test_every_change_of_a_concept_is_a_line() -> None:
    old = Bundle.load(SHIPPED)
    dog = old.catalogue["dog"]
    site, edit = next(iter(dog.edits.items()))
    fewer = SiteEdit(
        latents=edit.latents[1:],
        gamma=(0.25, *edit.gamma[2:]),
        shift=edit.shift[1:],
        gate=edit.gate[1:],
        tokens=("image",),
    )
    new = changed(
        old,
        dog=replace(dog, edits={**dog.edits, site: fewer}, scores={"HM": 0.5}),
        cat=None,
        puppy=replace(dog, name="puppy"),
    )
    lines = differences(old, new)
    assert "concept cat: removed" in lines
    assert "concept puppy: added" in lines
    assert f"concept dog: {site}: 0 latents added, 1 removed" in lines
    assert f"concept dog: {site}: gamma, shift or gate changed" in lines
    kinds = "sink, image, prompt, generated"
    assert f"concept dog: {site}: edits image tokens, not {kinds}" in lines
    assert any(
        line.startswith("concept dog: HM 0.") and "-> 0.5" in line for line in lines
    )
    back = differences(new, old)
    assert "concept cat: added" in back and "concept puppy: removed" in back


def test_sites_and_model_are_compared() -> None:
    old = Bundle.load(SHIPPED)
    one = {name: site.weights for name, site in old.sites.items() if name == "vision"}
    vision_only = [
        concept
        for concept in old.catalogue.values()
        if set(concept.edits) == {"vision"}
    ]
    other = old.fingerprint.model_copy(update={"architecture": "Other"})
    lines = differences(old, Bundle.build(other, one, Catalogue(vision_only)))
    assert "site decoder.1: removed" in lines
    assert any(line.startswith("model: architecture: 'Other', not") for line in lines)
