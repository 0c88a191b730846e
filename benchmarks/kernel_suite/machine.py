# SPDX-License-Identifier: Apache-2.0
"""The device a run is on: its name, what it copies and multiplies, its caches."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_suite.cases import Case, Rows, op_args, with_plan
from benchmarks.kernel_suite.timing import Call, Seconds, compare
from benchmarks.kernel_suite.verify import verify_op
from vllm_sauce_kernels.masked_edit import masked_edit_triton

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
    """Whether the Triton form is what is timed."""
    deadline: float = math.inf
    """On time.monotonic's clock: question a starts no cell later."""
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
        verify_op({"planned": masked_edit_triton}, with_plan(args), reference)
