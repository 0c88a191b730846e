# SPDX-License-Identifier: Apache-2.0
"""Question f: many tokens that share few masks, against the rate of products."""

from __future__ import annotations

from itertools import product

import torch

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import FIRES, Case, pool_for, random_rows, several
from benchmarks.kernel_suite.edit_speed import check
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.report import Table, Value, paragraph
from benchmarks.kernel_suite.timing import Call

TOKENS, MASKS, SIZE = 2048, (1, 16), 2048
GRID = ((1024, 4096), (32, 128, 512))
QUICK_GRID = ((1024,), (32,))

NOTE = paragraph(
    f"{TOKENS} tokens, each mask's follow one another. Timed in turn, in a line: the",
    "edit with one mask, with 16, and a product of two square matrices of 2,048, the",
    "matrix rate. Share of it: of the products that the edit makes, 2 tokens x",
    "latents x d_model FLOP to encode and, where something fires, as many to decode.",
    "fire: half of the masked latents exceed their gate, or none.",
)
COLUMNS = [
    "d_model", "latents", "fire", "1 mask us", "16 masks us", "1 / 16", "TFLOP/s",
    "1 mask, % of it", "16 masks, % of it",
]  # fmt: skip


def run(machine: Machine) -> list[Table]:
    """Return the question's table."""
    check(machine)
    table = Table("(f) Prefill", NOTE, COLUMNS)
    for d_model, latents in product(*(QUICK_GRID if machine.quick else GRID)):
        for fire in FIRES:
            table.add(*measure(machine, d_model, latents, fire))
    return [table]


def measure(machine: Machine, d_model: int, latents: int, fire: str) -> list[Value]:
    """Return a row."""
    machine.progress(f"(f) d_model {d_model}, latents {latents}, fire {fire}")
    pool = pool_for(latents)
    rows = random_rows(pool, d_model, machine.device, machine.dtype)
    a = torch.randn(SIZE, SIZE, device=machine.device, dtype=machine.dtype)
    b, out = torch.randn_like(a), torch.empty_like(a)
    calls: dict[str, Call] = {"product": lambda: torch.mm(a, b, out=out)}
    for masks in MASKS:
        case = Case(TOKENS, latents, d_model, masks, pool, fire)
        sets = several(case, rows, machine.cold_bytes, machine.most_sets)
        calls[str(masks)] = our_call(machine, sets)
    found = machine.compare(calls)
    rate = 2 * SIZE**3 / found["product"].median
    flops = (4 if fire == "half" else 2) * TOKENS * latents * d_model
    one, many = (found[str(masks)] for masks in MASKS)
    shares = [100 * flops / rate / times.median for times in (one, many)]
    ratio = one.median / many.median
    return [d_model, latents, fire, one.us, many.us, ratio, rate / 1e12, *shares]
