# SPDX-License-Identifier: Apache-2.0
"""The plan of a step, the cost model behind it, and what a launch makes of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.inputs import expected, make_args, normals, small_integers
from tests.kernels.plans import plan_of
from vllm_sauce_kernels.masked_edit import Planner, masked_edit_triton
from vllm_sauce_kernels.masked_edit.costs import Batch, Costs, FormCost, fit
from vllm_sauce_kernels.masked_edit.measure import BATCHES, FORCED, measure
from vllm_sauce_kernels.masked_edit.plan import HEADER, TILE_TOKENS, UNION, plan_size

NUM_SLOTS, NUM_POOL = 5, 40


def planner(max_tokens: int = 300, **options: Any) -> Planner:
    """A planner whose slots hold 0, 3, 6, 9 and 12 rows."""
    made = Planner(max_tokens, NUM_SLOTS, NUM_POOL, **options)
    for slot in range(NUM_SLOTS):
        made.rows[slot] = np.arange(slot, slot + 3 * slot, dtype=np.int32)
    return made


def tiles_of(made: Planner, plan: list[int]) -> list[list[int]]:
    at = HEADER + made.max_tokens
    return [plan[at + 3 * i : at + 3 * i + 3] for i in range(plan[1])]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(st.integers(-1, NUM_SLOTS - 1), st.integers(0, 150)), max_size=9
    )
)
def test_every_edited_token_is_in_one_tile_of_its_slot(
    requests: list[tuple[int, int]],
) -> None:
    made = planner(max_tokens=9 * 150)
    slots = [slot for slot, _ in requests]
    counts = [count for _, count in requests]
    plan = made.plan(slots, counts).tolist()
    wanted = [
        (token, slot)
        for token, slot in enumerate(np.repeat(slots, counts).astype(int).tolist())
        if slot > 0  # slot 0 holds no rows
    ]
    found = []
    for slot, start, count in tiles_of(made, plan):
        assert 0 < count <= TILE_TOKENS
        tokens = plan[HEADER + start : HEADER + start + count]
        found += [(token, slot) for token in tokens]
    assert sorted(found) == wanted
    assert plan[4] == len(wanted)
    assert len(plan) == plan_size(made.max_tokens, NUM_SLOTS, NUM_POOL)


def test_the_union_holds_each_row_in_use_once() -> None:
    made = planner()
    plan = made.plan([1, -1, 3, 1], [2, 1, 1, 1]).tolist()
    union = sorted({1, 2, 3} | set(range(3, 12)))
    at = len(plan) - 2 * NUM_POOL
    assert plan[5] == len(union)
    assert plan[at : at + len(union)] == union
    column = plan[at + NUM_POOL :]
    assert [column[row] for row in union] == list(range(len(union)))


def test_a_step_without_masks_plans_no_work() -> None:
    assert not planner().plan([-1, 0], [3, 4]).any()
    assert not planner().plan([], []).any()


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 300 tokens, got 301"):
        planner().plan([1], [301])


def test_the_cheaper_form_is_taken() -> None:
    """The choice follows the batch's numbers, and never is the union for TopK."""
    # 10 us for a tile's row against 1 us for the union's: many masks of few latents.
    costs = Costs(FormCost(1e-6, 1e-5, 0.0), FormCost(1e-4, 1e-6, 0.0))
    made = planner(costs=costs)
    assert made.plan([1], [1])[0] != UNION  # 31 us against 103 us
    several = made.plan([1, 2, 3, 4], [1, 1, 1, 1])
    assert made.batch_of(several) == Batch(tokens=4, tile_rows=30, union_rows=15)
    assert several[0] == UNION  # 301 us against 115 us
    assert planner(costs=costs, ranked=True).plan([1, 2, 3, 4], [1] * 4)[0] != UNION
    assert planner().plan([1, 2, 3, 4], [1] * 4)[0] != UNION  # not measured


def test_fit_finds_the_law_behind_exact_times() -> None:
    law = FormCost(3e-6, 2e-8, 5e-9)
    batches = [(1, 1), (512, 16), (2048, 64), (64, 128), (8192, 256)]
    found = fit([(rows, tokens, law.seconds(rows, tokens)) for rows, tokens in batches])
    for name in ("start", "per_row", "per_token"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-6)


def test_fit_keeps_constants_positive() -> None:
    """Times that fall with the tokens come from noise; no prediction is negative."""
    found = fit([(10, 1, 4e-6), (20, 100, 3e-6), (30, 200, 2e-6), (40, 9, 5e-6)])
    assert min(found.start, found.per_row, found.per_token) >= 0
    with pytest.raises(ValueError, match="at least 3 batches, got 2"):
        fit([(1, 1, 1.0), (2, 2, 2.0)])


def test_measuring_times_both_forms_on_the_sites_rows(interpreted: object) -> None:
    """The timed calls run, write to nothing of the site's, and give the costs."""
    args = make_args((1, 32, 48, 8, 2), normals())
    site = {k: v for k, v in args.items() if k in SITE}
    before = {k: v.clone() for k, v in site.items()}
    times = iter(range(1, 100))
    calls: list[Any] = []

    def timer(call: Any) -> float:
        if len(calls) < 4:  # the interpreter is slow
            call()
        calls.append(call)
        return next(times) * 1e-6

    costs = measure(site, timer)
    assert len(calls) == 2 * len(BATCHES)
    assert costs.tiles != costs.union
    assert all(torch.equal(site[k], before[k]) for k in site)


SITE = ("W_enc_rows", "W_dec_rows", "b_enc", "edited_tokens", "mask_len")


def test_work_left_to_a_form_that_is_not_launched_is_done(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for the union form, where memory allows none: the tiles form runs."""
    args = make_args((6, 40, 9, 5, 3), small_integers())
    plan = plan_of(args, "union")
    assert plan[0] == UNION
    monkeypatch.setattr(interpreted, "MAX_UNION_ELEMENTS", 0)
    want = expected(args)
    masked_edit_triton(**args, plan=plan)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])


def test_more_splits_than_the_scratch_has_are_not_used(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = make_args((6, 300, 9, 5, 3), small_integers())
    plan = plan_of(args, "tiles")
    assert plan[3] > 2
    monkeypatch.setattr(interpreted, "MAX_SPLITS", 2)
    want = expected(args)
    masked_edit_triton(**args, plan=plan)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_a_replayed_launch_follows_the_buffers(interpreted: Any) -> None:
    """Same addresses, new masks and a new plan: what a captured graph relies on."""
    args = make_args((6, 40, 9, 5, 3), small_integers())
    plan = plan_of(args, "tiles")
    masked_edit_triton(**args, plan=plan)
    args["slot_of_token"][:6] = torch.tensor([2, 2, -1, 1, 1, 0])
    plan.copy_(plan_of(args, "union"))
    want = expected(args)
    masked_edit_triton(**args, plan=plan)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert FORCED.keys() == {"tiles", "union"}


def test_a_plan_of_another_size_is_refused() -> None:
    args = make_args((6, 40, 9, 5, 3), small_integers())
    with pytest.raises(ValueError, match="plan must be contiguous"):
        masked_edit_triton(**args, plan=plan_of(args, "tiles")[:-1])
