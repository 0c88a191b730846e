# SPDX-License-Identifier: Apache-2.0
"""The plan of a step, and what a launch makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.inputs import expected, make_args, small_integers
from tests.kernels.plans import plan_of
from vllm_sauce_kernels.masked_edit import masked_edit_triton, plan_size, write_plan
from vllm_sauce_kernels.masked_edit.plan import (
    BLOCK_LATENTS,
    FEW_TOKENS,
    HEADER,
    LARGE_TILE,
    SMALL_TILE,
)

LENS = np.array([0, 3, 40, 9, 12], np.int32)
"""Latents of each slot's mask."""


def plan(slots: list[int], max_tokens: int | None = None) -> list[int]:
    """Return the plan of a step with a slot for each token."""
    padded = np.full(max_tokens or len(slots), -1, np.int32)
    padded[: len(slots)] = slots
    made = np.zeros(plan_size(len(padded), len(LENS)), np.int32)
    write_plan(made, padded, LENS)
    return made.tolist()


def tiles_of(made: list[int], max_tokens: int) -> list[list[int]]:
    at = HEADER + max_tokens
    return [made[at + 3 * i : at + 3 * i + 3] for i in range(made[0])]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(st.integers(-1, len(LENS) - 1), st.integers(0, 150)), max_size=9
    ),
    room=st.integers(1, 700),
)
def test_every_edited_token_is_in_one_tile_of_its_slot(
    requests: list[tuple[int, int]], room: int
) -> None:
    slots = np.repeat([s for s, _ in requests], [n for _, n in requests]).astype(int)
    made = plan(slots.tolist(), max_tokens := len(slots) + room)
    wanted = [
        (token, slot)
        for token, slot in enumerate(slots.tolist())
        if slot > 0  # slot 0 holds no rows
    ]
    # A launch of few tokens holds blocks of small tiles.
    most = SMALL_TILE if len(slots) <= FEW_TOKENS else LARGE_TILE
    found = []
    for slot, start, count in tiles_of(made, max_tokens):
        assert 0 < count <= most
        tokens = made[HEADER + start : HEADER + start + count]
        found += [(token, slot) for token in tokens]
    assert sorted(found) == wanted
    assert made[3] == len(wanted)
    longest = max((LENS[slot] for _, slot in wanted), default=0)
    assert made[1] == -(-longest // BLOCK_LATENTS)


@pytest.mark.parametrize("num_tokens", [1, 15, 256, 257, 4096])
@pytest.mark.parametrize("num_slots", [1, 3, 256])
def test_there_is_room_for_the_most_tiles(num_tokens: int, num_slots: int) -> None:
    """Slots in turns, and one that takes all that others leave."""
    lens = np.ones(num_slots, np.int32)
    for slots in (
        np.arange(num_tokens) % num_slots,
        np.minimum(np.arange(num_tokens), num_slots - 1),
    ):
        made = np.zeros(plan_size(num_tokens, num_slots), np.int32)
        write_plan(made, slots.astype(np.int32), lens)
        assert made[HEADER + num_tokens + 3 * made[0] - 1] > 0
        assert made[3] == num_tokens


def test_a_step_without_masks_plans_no_work() -> None:
    assert not any(plan([-1, 0, -1], 7))
    assert not any(plan([], 1))


def test_more_splits_than_the_scratch_has_are_not_used(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = make_args((6, 300, 9, 5, 3), small_integers())
    made = plan_of(args)
    assert made[2] > 2
    monkeypatch.setattr(interpreted, "MAX_SPLITS", 2)
    want = expected(args)
    masked_edit_triton(**args, plan=made)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_a_replayed_launch_follows_the_buffers(interpreted: Any) -> None:
    """Same addresses, new masks and a new plan: what a captured graph relies on."""
    args = make_args((6, 40, 9, 5, 3), small_integers())
    made = plan_of(args)
    masked_edit_triton(**args, plan=made)
    args["slot_of_token"][:6] = torch.tensor([2, 2, -1, 1, 1, 0])
    made.copy_(plan_of(args))
    want = expected(args)
    masked_edit_triton(**args, plan=made)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_a_plan_of_another_size_is_refused() -> None:
    args = make_args((6, 40, 9, 5, 3), small_integers())
    with pytest.raises(ValueError, match="plan must be contiguous"):
        masked_edit_triton(**args, plan=plan_of(args)[:-1])
