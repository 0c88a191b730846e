# SPDX-License-Identifier: Apache-2.0
"""The targets of a GPU beside what is measured. Nothing here passes or fails."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import FIRES, Case, random_rows, several, work_of
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.report import Table, paragraph

D_MODEL = 4096
PREFILL = tuple((tokens, latents) for tokens in (2048, 8192) for latents in (128, 2048))
COPY_SHARE, RATE_SHARE = 80, 60
DECODE_FACTOR, DECODE_START_US = 1.5, 5.0
SHARED_US = 2.0
LAUNCHES = 2
"""Of our kernels, without TopK."""

NOTE = paragraph(
    "Targets: prefill at >= 80 % of the copy bandwidth or >= 60 % of the matrix",
    "rate, whichever binds; 256 decoded tokens with 256 masks of 32 latents from a",
    "pool of 2,048 in at most 1.5 x (distinct bytes / copy bandwidth) + 5 us; one",
    "shared mask of 128 latents within 2 us of an empty kernel of the same grid.",
    "Bytes as in (a). `empty` is one launch of an empty kernel over our grid,",
    "`empties` as many as ours makes.",
)
COLUMNS = [
    "what", "tokens", "fire", "time us", "empty us", "empties us", "% of copy",
    "% of matrix rate", "measured", "target", "unit",
]  # fmt: skip


class Found(NamedTuple):
    """One case, in microseconds and per cent."""

    us: float
    empty: float
    empties: float
    of_copy: float
    of_rate: float
    floor_us: float
    """What its bytes take at the copy bandwidth."""


def run(machine: Machine, d_model: int = D_MODEL) -> list[Table]:
    """Return the table of targets."""
    table = Table("Targets", NOTE, COLUMNS)
    for fire in FIRES:
        _decode(machine, table, Case(256, 32, d_model, 256, fire=fire))
        for tokens in (1, 256):
            _shared(machine, table, Case(tokens, 128, d_model, 1, fire=fire))
        for tokens, latents in [] if machine.quick else PREFILL:
            pool = max(2048, 2 * latents)
            _prefill(machine, table, Case(tokens, latents, d_model, 16, pool, fire))
    return [table]


def _decode(machine: Machine, table: Table, case: Case) -> None:
    found = measure_case(machine, case)
    target = DECODE_FACTOR * found.floor_us + DECODE_START_US
    _add(table, "256 masks of 32", case, found, found.us, f"<= {target:.1f}", "us")


def _shared(machine: Machine, table: Table, case: Case) -> None:
    found = measure_case(machine, case)
    over, target = found.us - found.empty, f"<= {SHARED_US:g}"
    _add(table, "one mask of 128", case, found, over, target, "us over empty")


def _prefill(machine: Machine, table: Table, case: Case) -> None:
    found = measure_case(machine, case)
    what = f"prefill, 16 masks of {case.latents}"
    if found.of_copy >= found.of_rate:
        target, unit = COPY_SHARE, "% of copy"
    else:
        target, unit = RATE_SHARE, "% of matrix rate"
    share = max(found.of_copy, found.of_rate)
    _add(table, what, case, found, share, f">= {target}", unit)


def _add(
    table: Table,
    what: str,
    case: Case,
    found: Found,
    measured: float,
    target: str,
    unit: str,
) -> None:
    table.add(
        what, case.tokens, case.fire, found.us, found.empty, found.empties,
        found.of_copy, found.of_rate, measured, target, unit,
    )  # fmt: skip


def measure_case(machine: Machine, case: Case) -> Found:
    """Time a case, and empty kernels."""
    from benchmarks.kernel_suite.per_token import launch_empty
    from vllm_sauce_kernels.masked_edit.kernel import num_programs

    machine.progress(f"targets: {case}")
    rows = random_rows(case.pool, case.d_model, machine.device, machine.dtype)
    sets = several(case, rows, machine.cold_bytes, machine.most_sets)
    work = work_of(case, sets[0])
    programs, some = num_programs(machine.device), rows.b_enc

    def empties() -> None:
        for _ in range(LAUNCHES):
            launch_empty(some, programs)

    times = machine.compare(
        {
            "ours": our_call(machine, sets),
            "empty": lambda: launch_empty(some, programs),
            "empties": empties,
        }
    )
    floor = work.bytes / machine.copy_bytes_per_s
    rate_floor = work.flops / machine.flops_per_s
    seconds = times["ours"].median
    return Found(
        times["ours"].us,
        times["empty"].us,
        times["empties"].us,
        100 * floor / seconds,
        100 * rate_floor / seconds,
        1e6 * floor,
    )
