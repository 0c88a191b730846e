# SPDX-License-Identifier: Apache-2.0
"""What the host tells the device of a step: which tokens share a mask.

Written before the forward pass into one buffer at a fixed address, beside
``slot_of_token``, so that a captured graph replays with the numbers of its batch.
A plan must be of the same step as ``slot_of_token``.

Layout, int32: tiles, blocks of latents, splits of d_model, edited tokens;
``order [max_tokens]``, edited tokens by slot; ``tiles [max_tiles, 3]``: slot, first
place in order, tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HEADER = 4
FEW_TOKENS = 256
"""Launches of up to so many tokens take small tiles: decoding, where most hold one."""
SMALL_TILE, LARGE_TILE = 16, 64
"""Most tokens of a tile."""
BLOCK_LATENTS = 32
"""Latents that one item of encoding computes."""
MAX_SPLITS = 16
TARGET_ITEMS = 512
"""Items of work that fill a chip: d_model is split while there are fewer."""


def plan_size(max_tokens: int, num_slots: int) -> int:
    """Return the length of a plan's buffer."""
    return HEADER + max_tokens + 3 * _max_tiles(max_tokens, num_slots)


def _max_tiles(max_tokens: int, num_slots: int) -> int:
    few = -(-min(max_tokens, FEW_TOKENS) // SMALL_TILE)
    # Each slot's last tile may be cut short.
    return min(max_tokens, max(few, -(-max_tokens // LARGE_TILE)) + num_slots)


def write_plan(plan: np.ndarray, slot_of_token: np.ndarray, lens: np.ndarray) -> None:
    """Write a step's plan into zeros; without an edited token it stays so.

    Shapes, int32: plan [plan_size], slot_of_token [max_tokens], lens [num_slots],
        latents of each slot's mask
    """
    edited = np.flatnonzero(slot_of_token >= 0)
    slots = slot_of_token[edited]
    if not (there := lens[slots] > 0).all():
        edited, slots = edited[there], slots[there]
    if not len(edited):
        return
    # A launch of few tokens can hold no token beyond them, and so no larger tile.
    most = SMALL_TILE if edited[-1] < FEW_TOKENS else LARGE_TILE
    by_slot = slots.argsort(kind="stable")
    slots = slots[by_slot]
    # Of each mask's tokens. Not by np.diff, which takes four times as long.
    ends = np.append(np.flatnonzero(slots[1:] != slots[:-1]) + 1, len(slots))
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1]
    counts = ends - starts
    tiles_of = -(-counts // most)
    group = np.arange(len(starts)).repeat(tiles_of)
    first = (tiles_of.cumsum() - tiles_of)[group]
    offset = (np.arange(len(group)) - first) * most
    tiles_at = HEADER + len(slot_of_token)
    tiles = plan[tiles_at : tiles_at + 3 * len(group)].reshape(-1, 3)
    tiles[:, 0] = slots[starts[group]]
    tiles[:, 1] = starts[group] + offset
    tiles[:, 2] = np.minimum(counts[group] - offset, most)
    plan[HEADER : HEADER + len(edited)] = edited[by_slot]
    blocks = -(-int(lens[slots[starts]].max()) // BLOCK_LATENTS)
    splits = min(MAX_SPLITS, max(1, TARGET_ITEMS // (len(group) * blocks)))
    plan[:HEADER] = len(group), blocks, splits, len(edited)


def plan_of(slot_of_token: Tensor, lens: Tensor) -> Tensor:
    """Return a step's plan on the CPU. Shapes as ``write_plan``'s; -> [plan_size]"""
    plan = np.zeros(plan_size(len(slot_of_token), len(lens)), np.int32)
    write_plan(plan, slot_of_token.cpu().numpy(), lens.cpu().numpy())
    return torch.from_numpy(plan)
