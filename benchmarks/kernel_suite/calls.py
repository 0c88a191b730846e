# SPDX-License-Identifier: Apache-2.0
"""Our op as each device runs it, on arguments that take turns."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kernel_suite.cases import Args, with_plan
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.timing import Call, rotating
from vllm_sauce_kernels.masked_edit import masked_edit, masked_edit_triton


def our_call(machine: Machine, sets: Sequence[Args]) -> Call:
    """Return the op's call; Triton's has a plan, as a step has."""
    if machine.triton:
        planned = [with_plan(args) for args in sets]
        return rotating(masked_edit_triton, [tuple(args.values()) for args in planned])
    return rotating(masked_edit, [tuple(args.values()) for args in sets])
