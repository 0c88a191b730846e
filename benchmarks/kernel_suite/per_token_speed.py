# SPDX-License-Identifier: Apache-2.0
"""Question d: what a simple kernel, one program a token, takes for the same edit."""

from __future__ import annotations

from itertools import product

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import (
    FIRES,
    LARGE,
    SMALL,
    Case,
    random_rows,
    several,
)
from benchmarks.kernel_suite.machine import Machine, check_forms
from benchmarks.kernel_suite.report import Table, Value, paragraph
from benchmarks.kernel_suite.timing import rotating

# Tokens, latents, masks.
GRID = ((1, 16, 64, 256, 2048), (32, 128), (1, 16, 256))
QUICK_GRID = ((1, 16), (32,), (1, 16))
D_MODEL = 4096

NOTE = paragraph(
    f"d_model {D_MODEL}, masks from a pool of 2,048 rows. baseline: per_token.py, one",
    "program a token that passes its mask's rows one by one, decoder rows only where",
    "the latent fires, one launch. fire: half of the masked latents exceed their",
    "gate, or none, which is the usual case.",
)


def run(machine: Machine, d_model: int = D_MODEL) -> list[Table]:
    """Return the question's table."""
    columns = [
        "tokens", "latents", "masks", "fire", "ours us", "spread %", "baseline us",
        "its spread %", "baseline / ours",
    ]  # fmt: skip
    table = Table("(d) Against one program a token", NOTE, columns)
    if not machine.triton:
        table.note = "Needs a GPU: the baseline is a Triton kernel."
        return [table]
    check(machine)
    tokens, latents, masks = QUICK_GRID if machine.quick else GRID
    for num_tokens, count, num_masks, fire in product(tokens, latents, masks, FIRES):
        if num_masks <= num_tokens:
            case = Case(num_tokens, count, d_model, num_masks, fire=fire)
            machine.progress(f"(d) {case}")
            table.add(*measure_case(machine, case))
    return [table]


def check(machine: Machine) -> None:
    """Check the baseline against the definition, and on a larger batch."""
    from benchmarks.kernel_suite.per_token import per_token

    for case in (SMALL, LARGE):
        rows = random_rows(case.pool, case.d_model, machine.device, machine.dtype)
        variants = {"baseline": lambda **args: per_token(*args.values())}
        check_forms(machine, variants, case, rows, reference=case is SMALL)


def measure_case(machine: Machine, case: Case) -> list[Value]:
    """Return a row."""
    from benchmarks.kernel_suite.per_token import per_token

    rows = random_rows(case.pool, case.d_model, machine.device, machine.dtype)
    sets = several(case, rows, machine.cold_bytes, machine.most_sets)
    found = machine.compare(
        {
            "ours": our_call(machine, sets),
            "baseline": rotating(per_token, [tuple(args.values()) for args in sets]),
        }
    )
    ours, other = found["ours"], found["baseline"]
    return [
        case.tokens, case.latents, case.masks, case.fire, ours.us, ours.spread,
        other.us, other.spread, other.median / ours.median,
    ]  # fmt: skip
