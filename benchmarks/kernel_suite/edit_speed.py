# SPDX-License-Identifier: Apache-2.0
"""Questions a and e: an edit's time, and what it moves against a plain copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product

import torch

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import (
    FIRES,
    LARGE,
    SMALL,
    Args,
    Case,
    Rows,
    Work,
    pool_for,
    random_rows,
    several,
    work_of,
)
from benchmarks.kernel_suite.machine import Machine, check_forms
from benchmarks.kernel_suite.report import Table, Value, paragraph
from benchmarks.kernel_suite.timing import Seconds, rotating
from vllm_sauce_kernels.masked_edit import masked_edit_eager, masked_edit_triton, native

NATIVE_ELEMENTS, NATIVE_ELEMENTS_TIMES_CORES, NATIVE_TOKENS_PER_MASK = (
    1 << 21,
    1 << 25,
    16,
)
"""native.cpp's kMaxElements, kMaxElementsTimesCores and kTokensPerMask: what the C++
loop takes."""

# Tokens, latents, d_model, masks.
GPU_GRID = (
    (1, 16, 256, 2048, 8192),
    (32, 128, 512, 2048),
    (1024, 4096, 8192),
    (1, 16, 256),
)
CPU_GRID = ((1, 16, 256, 2048), (32, 128, 512), (1024, 4096), (1, 16, 256))
QUICK_GRID = ((1, 16, 256), (32, 128), (1024,), (1, 16))
# Supervised rows: one a concept, 64 for so many concepts at once.
ROWS_GRID = ((1, 16, 256), (1, 2, 4, 8, 16, 32, 64), (1024, 4096), (1, 16))
QUICK_ROWS_GRID = ((1, 16), (1, 8), (1024,), (1, 16))
Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

NOTE = paragraph(
    "Bytes are what any edit must move: each encoder row of the masks in use once,",
    "each decoder row that fires for some token once, hidden states and residual",
    "read once, hidden states written once if anything fires. Masks are drawn from a",
    "pool of 2,048 rows, or twice the mask. fire: half of the masked latents exceed",
    "their gate, or none, which is the usual case. Arguments take turns, so that",
    "caches are cold as between two layers of a model; `warm` marks cells whose sets",
    "together still fit the cache. Spread: 10th to 90th percentile. Over 100 % of",
    "copy: caches, or reads, which are faster than a copy.",
)


def run(machine: Machine) -> list[Table]:
    """Return the table of question a."""
    sizes = QUICK_GRID if machine.quick else GPU_GRID if machine.on_gpu else CPU_GRID
    return [_table(machine, "(a) Time of an edit", sizes)]


def run_rows(machine: Machine) -> list[Table]:
    """Return the table of question e."""
    sizes = QUICK_ROWS_GRID if machine.quick else ROWS_GRID
    return [_table(machine, "(e) Time of an edit of few rows", sizes)]


def _table(machine: Machine, title: str, sizes: Sizes) -> Table:
    check(machine)
    table = Table(title, _note(machine), _columns(machine))
    cases = list(grid(sizes))
    rows: Rows | None = None
    for number, case in enumerate(cases, 1):
        if time.monotonic() > machine.deadline:
            table.note += f" Left out, no time: {len(cases) - number + 1} cells."
            break
        machine.progress(f"{title[:3]} {number}/{len(cases)} {case}")
        if rows is None or rows.W_dec.shape != (case.pool, case.d_model):
            rows = random_rows(case.pool, case.d_model, machine.device, machine.dtype)
        if not machine.fits(needed_bytes(machine, case)):
            table.note += f" Left out, too little memory: {case}."
            continue
        table.add(*measure_case(machine, case, rows))
    return table


def grid(sizes: Sizes) -> Iterator[Case]:
    """Yield the cells, those of one pool after another."""
    tokens, latents, d_models, masks = sizes
    for d_model, count, num_tokens, num_masks in product(
        d_models, latents, tokens, masks
    ):
        if num_masks <= num_tokens:
            for fire in FIRES:
                yield Case(num_tokens, count, d_model, num_masks, pool_for(count), fire)


def needed_bytes(machine: Machine, case: Case) -> int:
    """Return an upper bound of what a cell's tensors and the op's scratch take."""
    size = machine.dtype.itemsize
    pool = 2 * case.pool * case.d_model * size
    streams = 2 * case.tokens * case.d_model * size
    sets = min(machine.most_sets, 1 + machine.cold_bytes // (case.used_bytes * size))
    copies = min(sets, 1 + machine.cold_bytes // pool)
    scratch = 16 * case.tokens * (case.latents + case.d_model)
    return pool * copies + streams * sets + scratch


def check(machine: Machine) -> None:
    """Check every form, on a small batch and one that has large tiles."""
    variants = {"op": torch.ops.vllm_sauce.masked_edit.default}
    for case in (SMALL, LARGE):
        rows = random_rows(case.pool, case.d_model, machine.device, machine.dtype)
        chosen: dict[str, Callable[..., object]] = dict(variants)
        if machine.triton:
            chosen = {"triton": masked_edit_triton}
        check_forms(machine, chosen, case, rows, reference=case is SMALL)


def _columns(machine: Machine) -> list[str]:
    shape = ["d_model", "latents", "tokens", "masks", "fire", "MB"]
    timed = [] if machine.triton else ["form", "PyTorch us", "PyTorch / op"]
    share = ["% of copy", "MFLOP", "% of matrix rate", "binds", "caches"]
    return [*shape, *timed, "time us", "spread %", "GB/s", *share]


def _note(machine: Machine) -> str:
    copy = f"Copy bandwidth {machine.copy_bytes_per_s / 1e9:.1f} GB/s (read + written)"
    rate = f"matrix rate {machine.flops_per_s / 1e12:.3g} TFLOP/s, both of this run."
    if machine.triton:
        forms = paragraph(
            "Times are of replayed CUDA graphs, a sample the mean of a graph's",
            "calls.",
        )
    else:
        forms = paragraph(
            "`time` is the op's whole call, PyTorch's dispatcher included; C++ loop:",
            f"{native.how()}. PyTorch: the op's form without C++, where C++ took the",
            "call.",
        )
    return paragraph(NOTE, forms, f"{copy}, {rate}")


def measure_case(machine: Machine, case: Case, rows: Rows) -> list[Value]:
    """Return a row."""
    sets = several(case, rows, machine.cold_bytes, machine.most_sets)
    work = work_of(case, sets[0])
    used = case.used_bytes * rows.W_dec.dtype.itemsize * len(sets)
    caches = "cold" if used >= machine.cold_bytes else "warm"
    shape: list[Value] = [
        case.d_model,
        case.latents,
        case.tokens,
        case.masks,
        case.fire,
    ]
    timed: list[Value] = []
    if machine.triton:
        found = machine.compare({"op": our_call(machine, sets)})["op"]
    else:
        timed, found = cpu_times(machine, case, sets)
    return [*shape, work.bytes / 1e6, *timed, *shares(machine, work, found), caches]


def cpu_times(
    machine: Machine, case: Case, sets: list[Args]
) -> tuple[list[Value], Seconds]:
    """Time the op as a model calls it and, if that is C++, the PyTorch form."""
    positional = [tuple(args.values()) for args in sets]
    op = torch.ops.vllm_sauce.masked_edit.default
    calls = {"op": rotating(op, positional)}
    elements = case.tokens * case.latents * case.d_model
    few = case.tokens < NATIVE_TOKENS_PER_MASK * min(case.masks, case.tokens)
    most = max(NATIVE_ELEMENTS, NATIVE_ELEMENTS_TIMES_CORES // torch.get_num_threads())
    in_cpp = (few or elements <= most) and native.prepare()
    if in_cpp:
        calls["PyTorch"] = rotating(masked_edit_eager, positional)
    found = machine.compare(calls)
    if not in_cpp:
        return ["PyTorch", None, None], found["op"]
    other = found["PyTorch"]
    return ["C++", other.us, other.median / found["op"].median], found["op"]


def shares(machine: Machine, work: Work, found: Seconds) -> list[Value]:
    """Return the cells on what was reached of the device's rates."""
    of_copy = 100 * work.bytes / machine.copy_bytes_per_s / found.median
    of_rate = 100 * work.flops / machine.flops_per_s / found.median
    return [
        found.us,
        found.spread,
        work.bytes / found.median / 1e9,
        of_copy,
        work.flops / 1e6,
        of_rate,
        "bytes" if of_copy >= of_rate else "products",
    ]
