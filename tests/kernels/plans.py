# SPDX-License-Identifier: Apache-2.0
"""Plans for the Triton form: what the host would say of a test's batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.kernels.inputs import Args
from vllm_sauce_kernels.masked_edit import masked_edit_triton
from vllm_sauce_kernels.masked_edit import plan as plans


def plan_of(args: Args) -> Tensor:
    """Return the plan of a batch."""
    slots = args["slot_of_token"].clone()
    # What lies behind the batch is of another one.
    slots[len(args["hidden_states"]) :] = -1
    return plans.plan_of(slots, args["mask_len"])


def planned(**args: Any) -> None:
    """Run the Triton op as a step with a plan does."""
    masked_edit_triton(**args, plan=plan_of(args))
