# SPDX-License-Identifier: Apache-2.0
"""The cost model that chooses between forms; its constants are measured, not guessed.

A form's time is a start, so much for each row that it reads for a tile, and so much for
each token. ``fit`` finds the three from timed batches on the device that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """A step's numbers, on which the choice of a form rests."""

    tokens: int
    """Edited ones."""
    tile_rows: int
    """Rows that the tiles form reads, once for each tile."""
    union_rows: int
    """Rows that the union form reads, once for each tile."""


@dataclass(frozen=True)
class FormCost:
    """Seconds of one form."""

    start: float
    per_row: float
    per_token: float

    def seconds(self, rows: int, tokens: int) -> float:
        """Return the predicted time of a batch."""
        return self.start + rows * self.per_row + tokens * self.per_token


@dataclass(frozen=True)
class Costs:
    """Both forms, as measured on one device for one site."""

    tiles: FormCost
    union: FormCost

    def union_is_faster(self, batch: Batch) -> bool:
        """Compare the forms' predicted times for a batch."""
        tiles = self.tiles.seconds(batch.tile_rows, batch.tokens)
        return self.union.seconds(batch.union_rows, batch.tokens) < tiles


def fit(samples: Sequence[tuple[int, int, float]]) -> FormCost:
    """Fit a form's cost to timed batches of (rows, tokens, seconds).

    Least squares of relative errors, so that small batches count as much as large ones.
    Negative constants, which noise can give, become zero.

    Raises: ValueError with fewer than three batches
    """
    if len(samples) < 3:
        raise ValueError(f"a fit needs at least 3 batches, got {len(samples)}")
    rows, tokens, seconds = np.array(samples, np.float64).T
    terms = np.stack([np.ones_like(rows), rows, tokens], 1) / seconds[:, None]
    kept = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(terms[:, kept], np.ones_like(rows), rcond=None)[0]
        if (found >= 0).all():
            break
        del kept[int(found.argmin())]
    constants = np.zeros(3)
    constants[kept] = found
    return FormCost(*constants.tolist())
