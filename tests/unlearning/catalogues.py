# SPDX-License-Identifier: Apache-2.0
"""Catalogues the tests of this folder share."""

from vllm_sauce.concepts import Catalogue, Concept, SiteEdit

DIGEST = "d" * 64


def build_catalogue():
    """dog and cat share latent 5 at vision; red sits at decoder.1 only."""
    dog = SiteEdit(latents=(9, 5), gamma=(-0.5, 0.0), shift=(0, -1), gate=(0.5, 0.3))
    cat = SiteEdit(latents=(5, 2), gamma=(-1.0, 0.5), shift=(0, 0), gate=(0.7, 0.0))
    red = SiteEdit.uniform([1])
    return Catalogue(
        [
            Concept(name="dog", domain="objects", edits={"vision": dog}),
            Concept(name="cat", domain="objects", edits={"vision": cat}),
            Concept(name="red", domain="colours", edits={"decoder.1": red}),
        ]
    )
