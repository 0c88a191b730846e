# SPDX-License-Identifier: Apache-2.0
"""What the host tells the device of a step: which tokens go together, and how.

Written before the forward pass into one buffer at a fixed address, beside
``slot_of_token``, so that a captured graph replays with the numbers of its batch.
A plan must be of the same step as ``slot_of_token``.

Layout, int32: form, tiles, blocks of latents, splits of d_model, edited tokens, latents
in the union, two unused; ``order [max_tokens]``, edited tokens by slot;
``tiles [max_tiles, 3]``: slot, first place in order, tokens; ``union [num_pool]``, rows
in use; ``column [num_pool]``, a row's place in the union.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.costs import Batch, Costs

HEADER = 8
TILE_TOKENS = 64
"""Most tokens of a tile; kernels may cut it into smaller ones."""
BLOCK_LATENTS = 32
"""Latents that one item of encoding computes."""
MAX_SPLITS = 16
TARGET_ITEMS = 512
"""Items of work that fill a chip: d_model is split while there are fewer."""
TILES, UNION = 0, 1


class Planner:
    """Makes the plans of one site.

    ``rows[slot]`` is what the caller keeps up to date: the pool's rows of its mask.
    """

    def __init__(
        self,
        max_tokens: int,
        num_slots: int,
        num_pool: int,
        *,
        rows: list[np.ndarray] | None = None,
        ranked: bool = False,
        costs: Costs | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.num_pool = num_pool
        self.ranked = ranked
        self.costs = costs
        """Measured on this device; without them the tiles form is taken."""
        self.rows = [np.zeros(0, np.int32)] * num_slots if rows is None else rows
        self.size = plan_size(max_tokens, num_slots, num_pool)

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> Tensor:
        """Return the plan of a step as a tensor on the CPU.

        Shapes: slots, num_tokens [num_reqs], in the order of the batch -> [size]
        Raises: ValueError when there are more tokens than the plan has room for
        """
        if sum(num_tokens) > self.max_tokens:
            raise ValueError(
                f"a plan has room for {self.max_tokens} tokens, got {sum(num_tokens)}"
            )
        plan = np.zeros(self.size, np.int32)
        groups = self._groups(slots, num_tokens)
        if not groups:
            return torch.from_numpy(plan)
        order = np.concatenate([tokens for _, tokens in groups])
        tiles = _tiles([(slot, len(tokens)) for slot, tokens in groups])
        plan[HEADER : HEADER + len(order)] = order
        tiles_at = HEADER + self.max_tokens
        plan[tiles_at : tiles_at + tiles.size] = tiles.ravel()
        union = np.unique(np.concatenate([self.rows[slot] for slot, _ in groups]))
        union_at = self.size - 2 * self.num_pool
        plan[union_at : union_at + len(union)] = union
        plan[union_at + self.num_pool + union] = np.arange(len(union))
        longest = max(len(self.rows[slot]) for slot, _ in groups)
        blocks = -(-longest // BLOCK_LATENTS)
        splits = min(MAX_SPLITS, max(1, TARGET_ITEMS // (len(tiles) * blocks)))
        plan[:6] = TILES, len(tiles), blocks, splits, len(order), len(union)
        found = torch.from_numpy(plan)
        costs = None if self.ranked else self.costs
        if costs is not None and costs.union_is_faster(self.batch_of(found)):
            found[0] = UNION
        return found

    def _groups(
        self, slots: Sequence[int], num_tokens: Sequence[int]
    ) -> list[tuple[int, np.ndarray]]:
        """Return the tokens of each slot of the step that has latents."""
        first = np.concatenate([[0], np.cumsum(num_tokens)])
        spans: dict[int, list[np.ndarray]] = {}
        for slot, start, end in zip(slots, first, first[1:], strict=False):
            if slot >= 0 and len(self.rows[slot]) and end > start:
                spans.setdefault(slot, []).append(np.arange(start, end))
        return [(slot, np.concatenate(spans[slot])) for slot in sorted(spans)]

    def batch_of(self, plan: Tensor) -> Batch:
        """Return the numbers of a planned step."""
        _, num_tiles, _, _, tokens, union = plan[:6].tolist()
        tiles_at = HEADER + self.max_tokens
        slots = plan[tiles_at : tiles_at + 3 * num_tiles : 3].tolist()
        tile_rows = sum(len(self.rows[slot]) for slot in slots)
        return Batch(tokens, tile_rows, union * -(-tokens // TILE_TOKENS))


def _tiles(groups: list[tuple[int, int]]) -> np.ndarray:
    """Cut each slot's tokens into tiles. Shapes: -> [num_tiles, 3]"""
    tiles, start = [], 0
    for slot, count in groups:
        for offset in range(0, count, TILE_TOKENS):
            tiles.append((slot, start + offset, min(TILE_TOKENS, count - offset)))
        start += count
    return np.array(tiles, np.int32)


def plan_size(max_tokens: int, num_slots: int, num_pool: int) -> int:
    """Return the length of a plan's buffer."""
    max_tiles = min(max_tokens, -(-max_tokens // TILE_TOKENS) + num_slots)
    return HEADER + max_tokens + 3 * max_tiles + 2 * num_pool
