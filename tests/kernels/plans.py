# SPDX-License-Identifier: Apache-2.0
"""Plans for the Triton forms: what the host would say of a test's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.kernels.inputs import Args
from vllm_sauce_kernels.masked_edit import masked_edit_triton
from vllm_sauce_kernels.masked_edit.measure import FORCED
from vllm_sauce_kernels.masked_edit.plan import Planner


def plan_of(args: Args, form: str) -> Tensor:
    """Return the plan of a batch, the form forced; each run of a slot is a request."""
    slots = args["slot_of_token"][: len(args["hidden_states"])]
    runs, counts = torch.unique_consecutive(slots, return_counts=True)
    planner = Planner(
        len(args["slot_of_token"]),
        len(args["mask_len"]),
        len(args["W_dec_rows"]),
        ranked=args.get("topk", 0) > 0,
        costs=FORCED[form],
    )
    for slot, count in enumerate(args["mask_len"].tolist()):
        planner.rows[slot] = args["mask_latents"][slot, :count].numpy()
    return planner.plan(runs.tolist(), counts.tolist())


def planned(form: str) -> Callable[..., None]:
    """Return the Triton op as a step with a plan runs it, in one form."""

    def run(**args: Any) -> None:
        masked_edit_triton(**args, plan=plan_of(args, form))

    return run
