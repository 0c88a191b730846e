# SPDX-License-Identifier: Apache-2.0
"""Measures the cost model's constants, on the device and the rows that will serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.costs import Costs, FormCost, fit
from vllm_sauce_kernels.masked_edit.dispatch import masked_edit_triton
from vllm_sauce_kernels.masked_edit.plan import Planner

BATCHES = ((1, 1), (16, 16), (64, 64), (128, 1), (256, 16), (256, 256))
"""Tokens and distinct masks. No more than decoding captures in a graph."""
MASK_LATENTS = 32

Timer = Callable[[Callable[[], None]], float]
FREE, DEAR = FormCost(0.0, 0.0, 0.0), FormCost(1.0, 0.0, 0.0)
FORCED = {"tiles": Costs(FREE, DEAR), "union": Costs(DEAR, FREE)}
"""Costs that leave the planner one choice."""


def measure(op_args: Mapping[str, Any], timer: Timer | None = None) -> Costs:
    """Time both forms on batches with random masks and fit their costs.

    ``op_args`` are a site's tensors and numbers; none is written to. ``timer`` returns
    the seconds of a call; by default CUDA graphs are timed.
    """
    timer = timer or graph_seconds
    samples: dict[str, list[tuple[int, int, float]]] = {"tiles": [], "union": []}
    for num_tokens, num_masks in BATCHES:
        args, planner, slots = _batch(op_args, num_tokens, num_masks)
        for form, costs in FORCED.items():
            planner.costs = costs
            plan = planner.plan(slots, [1] * num_tokens)
            args["plan"] = plan.to(args["slot_of_token"].device)
            batch = planner.batch_of(plan)
            rows = batch.tile_rows if form == "tiles" else batch.union_rows
            seconds = timer(lambda args=args: masked_edit_triton(**args))  # type: ignore[misc]
            samples[form].append((rows, batch.tokens, seconds))
    return Costs(fit(samples["tiles"]), fit(samples["union"]))


def graph_seconds(call: Callable[[], None]) -> float:
    """Return the seconds of a call replayed from a CUDA graph."""
    from triton.testing import do_bench_cudagraph  # type: ignore[import-untyped, unused-ignore]

    call()  # compiles the kernels, which a capture may not
    # The capture's stream does not wait for the one that filled the tables.
    torch.cuda.synchronize()
    return float(do_bench_cudagraph(call, rep=5, return_mode="median")) / 1e3


def _batch(
    op_args: Mapping[str, Any], num_tokens: int, num_masks: int
) -> tuple[dict[str, Any], Planner, list[int]]:
    """Return the op's arguments for a batch of random masks, and its slots."""
    W_dec: Tensor = op_args["W_dec_rows"]
    device, (num_pool, d_model) = W_dec.device, W_dec.shape
    count = min(MASK_LATENTS, num_pool)
    gen = torch.Generator("cpu").manual_seed(num_tokens)
    rows = (
        torch.rand(num_masks, num_pool, generator=gen, device="cpu")
        .argsort(1)[:, :count]
        .int()
    )
    planner = Planner(num_tokens, num_masks, num_pool)
    planner.rows[:] = list(rows.numpy())
    slots = [token % num_masks for token in range(num_tokens)]
    half = W_dec.dtype if W_dec.dtype.itemsize > 1 else torch.bfloat16
    shape = (num_tokens, d_model)
    args = {
        **op_args,
        "hidden_states": torch.randn(shape, generator=gen, device="cpu").to(
            device, half
        ),
        "residual": torch.randn(shape, generator=gen, device="cpu").to(device, half),
        "slot_of_token": torch.tensor(slots, dtype=torch.int32, device=device),
        "mask_latents": rows.to(device),
        "mask_scale": torch.full(rows.shape, -1e-3, device=device),
        "mask_shift": torch.zeros(rows.shape, device=device),
        "mask_gate": torch.zeros(rows.shape, device=device),
        "mask_len": torch.full((num_masks,), count, dtype=torch.int32, device=device),
        "edited_tokens": torch.zeros(num_masks, dtype=torch.int64, device=device),
    }
    return args, planner, slots
