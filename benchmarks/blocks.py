# SPDX-License-Identifier: Apache-2.0
"""Block sizes and grids of the Triton kernels side by side, in microseconds an edit.

``python benchmarks/blocks.py`` needs a GPU. Each cell is a CUDA graph of calls whose
arguments take turns, so that caches are cold.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.kernel_suite.cases import Args, Case, random_rows, several, with_plan
from vllm_sauce_kernels.masked_edit import kernel, masked_edit_triton
from vllm_sauce_kernels.masked_edit import plan as plans

D_MODEL, POOL, REPLAYS = 4096, 2048, 20
COLD_BYTES, MOST_SETS = 200 << 20, 24
CASES = [
    Case(tokens, latents, D_MODEL, masks, POOL, fire)
    for tokens, latents, masks, fire in (
        (256, 32, 256, "half"),
        (256, 32, 256, "none"),
        (1, 128, 1, "half"),
        (256, 8, 256, "half"),
        (256, 1, 64, "half"),
        (256, 32, 1, "half"),
        (64, 32, 64, "half"),
        (16, 32, 16, "half"),
        (2048, 128, 16, "half"),
        (8192, 32, 16, "none"),
    )
]
ENCODE, DECODE, SPLITS = kernel.encode_kernel, kernel.decode_kernel, kernel.splits_of
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "lone tokens: encode 128": {"encode": {"ALONE_D": 128}},
    "lone tokens: encode 512": {"encode": {"ALONE_D": 512}},
    "lone tokens: decode 128": {"decode": {"ALONE_D": 128}},
    "lone tokens: decode 256": {"decode": {"ALONE_D": 256}},
    "encode: 128 registers": {"encode": {"maxnreg": 128}},
    "3 programs": {"programs": 3},
    "8 programs": {"programs": 8},
    "1,024 items": {"items": 1024},
    "large: splits by tiles alone": {"splits": lambda *shape: plans.MAX_SPLITS},
}


class Changed:
    """A kernel that is launched with other options."""

    def __init__(self, kernel: Any, options: dict[str, Any]) -> None:
        self.kernel, self.options = kernel, options

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        launch = self.kernel[grid]
        return lambda *args, **options: launch(*args, **options | self.options)


def apply(variant: dict[str, Any]) -> None:
    """Set the kernels' sizes; what a variant does not name is as it is."""
    plans.TARGET_ITEMS = kernel.TARGET_ITEMS = variant.get("items", 512)
    kernel.splits_of = variant.get("splits", SPLITS)
    kernel.encode_kernel = Changed(ENCODE, variant.get("encode", {}))
    kernel.decode_kernel = Changed(DECODE, variant.get("decode", {}))
    programs = variant.get("programs", 4)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    kernel.num_programs = lambda device: programs * processors  # type: ignore[assignment]


def microseconds(sets: list[Args]) -> float:
    """Return the median time of a call, of replays of a graph of all sets."""
    planned = [with_plan(args) for args in sets]
    for args in planned[:2]:
        masked_edit_triton(**args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for args in planned:
            masked_edit_triton(**args)
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(planned))
    return statistics.median(times)


def main() -> None:
    """Print a line for each variant."""
    device = torch.device("cuda", 0)
    rows = random_rows(POOL, D_MODEL, device, torch.bfloat16)
    sets = [several(case, rows, COLD_BYTES, MOST_SETS) for case in CASES]
    print(f"{torch.cuda.get_device_name()}; d_model {D_MODEL}, bfloat16\n")
    shapes = [f"{c.tokens} x {c.latents}, {c.masks} masks, {c.fire}" for c in CASES]
    print("| variant | " + " | ".join(shapes) + " |")
    print("|---|" + "---:|" * len(CASES))
    for name, variant in VARIANTS.items():
        apply(variant)
        times = [f"{microseconds(one):.1f}" for one in sets]
        print(f"| {name} | " + " | ".join(times) + " |", flush=True)


if __name__ == "__main__":
    main()
