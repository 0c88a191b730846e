# SPDX-License-Identifier: Apache-2.0
"""The device a run is on: its name, what it copies and multiplies, its caches."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_suite.cases import (
    Args,
    Case,
    Rows,
    op_args,
    planner_of,
    with_plan,
)
from benchmarks.kernel_suite.timing import Call, Seconds, compare
from benchmarks.kernel_suite.verify import verify_op
from vllm_sauce_kernels.masked_edit import Costs, masked_edit_triton
from vllm_sauce_kernels.masked_edit.measure import measure
from vllm_sauce_kernels.masked_edit.plan import UNION

CPU_COLD_BYTES = 1 << 26
MOST_SETS = {"cpu": 32, "cuda": 96}
"""A graph holds about as many calls; more sets would not all be replayed."""
MEMORY_SHARE = 0.7
"""Of what is free, the most that a cell may take."""


@dataclass
class Machine:
    """What questions need of the device, and its measured rates."""

    device: torch.device
    dtype: torch.dtype
    seconds: float
    quick: bool
    progress: Callable[[str], None]
    triton: bool
    """Whether the Triton forms are what is timed."""
    deadline: float = math.inf
    """On time.monotonic's clock: question a starts no cell later."""
    costs: dict[str, Costs] = field(default_factory=dict)
    """Measured constants of the cost model, by site."""
    copy_bytes_per_s: float = 0.0
    flops_per_s: float = 0.0

    @property
    def on_gpu(self) -> bool:
        """Whether this is no CPU."""
        return self.device.type == "cuda"

    @property
    def cold_bytes(self) -> int:
        """What sets of arguments must hold together, so that they are not cached."""
        if not self.on_gpu:
            return CPU_COLD_BYTES
        return 2 * torch.cuda.get_device_properties(self.device).L2_cache_size

    @property
    def most_sets(self) -> int:
        """How many sets of arguments take turns at most."""
        return MOST_SETS[self.device.type]

    def compare(self, variants: Mapping[str, Call]) -> dict[str, Seconds]:
        """Time variants against each other."""
        return compare(variants, self.device, self.seconds)

    def fits(self, num_bytes: int) -> bool:
        """Return whether a cell's tensors fit."""
        return num_bytes <= MEMORY_SHARE * free_bytes(self.device)

    def costs_of(self, rows: Rows) -> Costs | None:
        """Return the cost model's measured constants for a site; None on CPUs."""
        if not self.triton:
            return None
        name = f"{rows.W_dec.shape[0]} rows, d_model {rows.W_dec.shape[1]}"
        if name not in self.costs:
            case = Case(1, 1, rows.W_dec.shape[1], 1, rows.W_dec.shape[0])
            timer = None if self.on_gpu else self._plain_seconds
            self.costs[name] = measure(op_args(case, rows), timer)
        return self.costs[name]

    def _plain_seconds(self, call: Callable[[], None]) -> float:
        return self.compare({"": call})[""].median

    def measure_rates(self) -> None:
        """Measure the copy bandwidth and the rate of matrix products."""
        small = self.seconds < 0.05 and not self.on_gpu
        elements = (1 << 30 if self.on_gpu else 1 << 25 if small else 1 << 28) // 4
        source = torch.ones(elements, device=self.device)
        target = torch.empty_like(source)
        size = 8192 if self.on_gpu else 512 if small else 2048
        # Random: a GPU multiplies ones faster, because they cost less power.
        a = torch.randn(size, size, device=self.device, dtype=self.dtype)
        b, product = torch.randn_like(a), torch.empty_like(a)
        found = self.compare(
            {
                "copy": lambda: target.copy_(source),
                "product": lambda: torch.mm(a, b, out=product),
            }
        )
        self.copy_bytes_per_s = 8 * elements / found["copy"].median
        self.flops_per_s = 2 * size**3 / found["product"].median

    def form_taken(self, case: Case, args: Args, costs: Costs | None) -> str:
        """Return the form that the cost model takes for a batch."""
        plan = planner_of(case, args, costs).plan(*case.requests)
        return "union" if int(plan[0]) == UNION else "tiles"

    def has_union(self, case: Case) -> bool:
        """Return whether the union form is launched for a batch at all."""
        from vllm_sauce_kernels.masked_edit.kernel import MAX_UNION_ELEMENTS

        return case.tokens * case.pool <= MAX_UNION_ELEMENTS

    def forms(self, case: Case) -> list[str]:
        """Return the Triton forms that can be timed on a batch."""
        return ["tiles", "union"] if self.has_union(case) else ["tiles"]


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def device_name(device: torch.device) -> str:
    """Return the hardware's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def check_forms(
    machine: Machine,
    variants: Mapping[str, Callable[..., object]],
    case: Case,
    rows: Rows,
    *,
    reference: bool,
    **kind: Any,
) -> None:
    """Check variants of the op on one batch whose edits are of order one.

    Raises: WrongResult
    """
    args = {**op_args(case, rows, scale=-1.0), **kind}
    verify_op(variants, args, reference)
    if machine.triton:
        for form in machine.forms(case):
            plan = with_plan(case, args, form)["plan"]
            verify_op({form: _planned(plan)}, args, reference)


def _planned(plan: torch.Tensor) -> Callable[..., None]:
    def run(**args: Any) -> None:
        masked_edit_triton(**{**args, "plan": plan})

    return run
