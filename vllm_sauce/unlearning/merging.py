# SPDX-License-Identifier: Apache-2.0
"""What a mask does to each latent, where several of its concepts edit one; no torch."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_sauce.concepts import TOKENS, Catalogue, is_vision
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.unlearning.mask import Mask

Row = tuple[float, float, float]
"""scale, shift, gate: a latent z gains ``scale * z + shift`` where z > gate."""


def merged(rows: Sequence[Row]) -> Row | None:
    """Return one edit that moves a latent as far as each of several does, or farther.

    The strongest scale, shift and gate of them all: added up they would overshoot what
    each was calibrated for. None where they move it up and down: none of a concept's
    edit may be taken away by another's.
    """
    ways = {way for scale, shift, _ in rows if (way := _way(scale, shift))}
    if len(ways) > 1:
        return None
    way = 1 if ways == {1} else -1
    scales, shifts, gates = zip(*rows, strict=True)
    strongest = max if way == 1 else min
    row = strongest(scales), strongest(shifts), min(gates)
    if all(_moves_as_far(row, one, way) for one in rows):
        return row
    # A shift against its scale: all that moves goes the scale's way, as far as any.
    return way * max(map(abs, scales)), way * max(map(abs, shifts)), min(gates)


def _way(scale: float, shift: float) -> int:
    """Return where an edit moves what fires strongly: 1 up, -1 down, 0 nowhere."""
    leads = scale or shift
    return (leads > 0) - (leads < 0)


def _moves_as_far(row: Row, one: Row, way: int) -> bool:
    # With row's change r and one's c, r - c is on row's way at every z >= 0, so
    # r * r >= c * c wherever r + c is, too: at one's gate, and from there on.
    if row[:2] == one[:2]:
        return True
    slope, gate = way * (row[0] + one[0]), one[2]
    return slope >= 0 and slope * gate + way * (row[1] + one[1]) >= 0


def rows_at(mask: Mask, catalogue: Catalogue, site: str) -> dict[int, Row]:
    """Return what a mask does at a site by latent; empty if it edits nothing there.

    Raises: UnknownConceptError, InvalidRequestError for concepts that contradict
    """
    found: dict[int, list[Row]] = {}
    for name, strength in mask.concepts:
        edit = catalogue.concept(name).edits.get(site)
        if edit is None:
            continue
        for latent, gamma, shift, gate in zip(
            edit.latents, edit.gamma, edit.shift, edit.gate, strict=True
        ):
            row = (strength * (gamma - 1.0), strength * shift, gate)
            found.setdefault(latent, []).append(row)
    made: dict[int, Row] = {}
    for latent, rows in found.items():
        one = rows[0] if len(rows) == 1 else merged(rows)
        if one is None:
            raise _contradiction(mask, catalogue, site, latent)
        made[latent] = one
    return made


def _contradiction(
    mask: Mask, catalogue: Catalogue, site: str, latent: int
) -> InvalidRequestError:
    names = [
        name
        for name in mask.names()
        if (edit := catalogue.concept(name).edits.get(site)) and latent in edit.latents
    ]
    return InvalidRequestError(
        f"{', '.join(names)} move latent {latent} at {site!r} up and down, so one of "
        "them would be forgotten less than alone; ask for them in requests of their own"
    )


def check_agreement(mask: Mask, catalogue: Catalogue) -> None:
    """Refuse a mask whose concepts take of each other's edits.

    Raises: UnknownConceptError, InvalidRequestError
    """
    for site in mask.sites(catalogue):
        # At the tower all concepts act; elsewhere, on each kind of token, some.
        kinds = () if is_vision(site) else TOKENS
        parts = [mask.at_tokens(catalogue, site, kind) for kind in kinds] or [mask]
        for part in dict.fromkeys(parts):
            if part is not None:
                rows_at(part, catalogue, site)
