# SPDX-License-Identifier: Apache-2.0
"""A mask's edits at one site, one row a latent."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sauce.concepts import Catalogue
from vllm_sauce.unlearning.mask import Mask


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Parallel rows: latent z gains ``scale * z + shift`` where z > gate."""

    latents: tuple[int, ...] = ()
    """Latents of the site's SAE, sorted, distinct."""

    scale: tuple[float, ...] = ()
    """strength * (gamma - 1)."""

    shift: tuple[float, ...] = ()
    """strength * shift."""

    gate: tuple[float, ...] = ()
    """Activation to exceed, without the SAE's own threshold."""

    def __len__(self) -> int:
        return len(self.latents)


def site_rows(mask: Mask, catalogue: Catalogue, site: str) -> MaskRows:
    """Return a mask's rows at a site; no rows if it edits nothing there.

    Where concepts share a latent the strongest edit wins: the smallest scale, shift
    and gate. Adding them up would overshoot what either was calibrated for.

    Raises: UnknownConceptError
    """
    rows: dict[int, tuple[float, float, float]] = {}
    for name, strength in mask.concepts:
        edit = catalogue.concept(name).edits.get(site)
        if edit is None:
            continue
        for latent, gamma, shift, gate in zip(
            edit.latents, edit.gamma, edit.shift, edit.gate, strict=True
        ):
            row = (strength * (gamma - 1.0), strength * shift, gate)
            seen = rows.get(latent, row)
            rows[latent] = (
                min(row[0], seen[0]),
                min(row[1], seen[1]),
                min(row[2], seen[2]),
            )
    latents = tuple(sorted(rows))
    columns = zip(*(rows[latent] for latent in latents), strict=True)
    return MaskRows(latents, *columns) if latents else MaskRows()
