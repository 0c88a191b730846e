# SPDX-License-Identifier: Apache-2.0
"""Our op as each device runs it, on arguments that take turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernel_suite.cases import Args, Case, with_plan
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.timing import Call, rotating
from vllm_sauce_kernels.masked_edit import Costs, masked_edit_triton


def planned_calls(
    machine: Machine, case: Case, sets: Sequence[Args]
) -> dict[str, Call]:
    """Return a call of each form that Triton has for a batch."""
    return {
        form: rotating(
            masked_edit_triton,
            [tuple(with_plan(case, args, form).values()) for args in sets],
        )
        for form in machine.forms(case)
    }


def our_call(
    machine: Machine, case: Case, sets: Sequence[Args], costs: Costs | None
) -> Call:
    """Return the op's call; where a plan counts, in the form the cost model takes."""
    if machine.triton:
        return planned_calls(machine, case, sets)[
            form_launched(machine, case, sets[0], costs)
        ]
    op = torch.ops.vllm_sauce.masked_edit.default
    return rotating(op, [tuple(args.values()) for args in sets])


def form_launched(machine: Machine, case: Case, args: Args, costs: Costs | None) -> str:
    """Return the form that the cost model takes, or what a launch without it runs."""
    taken = machine.form_taken(case, args, costs)
    return taken if taken in machine.forms(case) else "tiles"
