# SPDX-License-Identifier: Apache-2.0
"""How far concepts stand on the same latents, or on ones that point the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vllm_sauce.concepts import Catalogue
from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one concept's latents have in common with another's."""

    shared: int
    """Latents that both edit."""
    similarity: float
    """Mean over this concept's latents, at sites both edit, of the largest cosine
    between its decoder row and one of the other's; 1 for a shared latent."""


def latent_owners(catalogue: Catalogue) -> dict[tuple[str, int], tuple[str, ...]]:
    """Return the concepts that edit each latent, by site and latent."""
    owners: dict[tuple[str, int], list[str]] = {}
    for name, concept in catalogue.items():
        for site, edit in concept.edits.items():
            for latent in edit.latents:
                owners.setdefault((site, latent), []).append(name)
    return {key: tuple(names) for key, names in owners.items()}


def overlaps(
    catalogue: Catalogue, saes: Mapping[str, SAEWeights], name: str
) -> dict[str, Overlap]:
    """Return a concept's overlap with every other one."""
    concept = catalogue[name]
    found = {}
    for other, item in catalogue.items():
        if other == name:
            continue
        shared, total, count = 0, 0.0, 0
        for site in concept.edits.keys() & item.edits.keys():
            mine, theirs = concept.edits[site].latents, item.edits[site].latents
            shared += len(set(mine) & set(theirs))
            rows = saes[site].W_dec.float()
            cosines = (
                torch.nn.functional.normalize(rows[list(mine)], dim=1)
                @ torch.nn.functional.normalize(rows[list(theirs)], dim=1).T
            )
            total += float(cosines.amax(1).sum())
            count += len(mine)
        found[other] = Overlap(shared, total / count if count else 0.0)
    return found
