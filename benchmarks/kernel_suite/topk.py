# SPDX-License-Identifier: Apache-2.0
"""Question c: the exact rank test against torch.topk over the whole dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import (
    FIRES,
    LOUD,
    SMALL,
    Args,
    Case,
    Rows,
    op_args,
    random_rows,
    several,
)
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.paper import edit_of
from benchmarks.kernel_suite.report import Table, Value, paragraph
from benchmarks.kernel_suite.timing import rotating
from benchmarks.kernel_suite.verify import TOLERANCE, difference, on_cpu, verify
from vllm_sauce_kernels.masked_edit import masked_edit_ref

POOL, LATENTS, MOST_MASKS, TOPK = 256, 32, 16, 64
BIAS = 3.0
"""Of the pool's latents, also their gate: half exceed it, and some are in the top k."""

BFLOAT16 = paragraph(
    "bfloat16 pre-activations, which only the former makes, tie and so put other",
    "latents among the k largest.",
)

# Rows of the dictionary, tokens, d_model.
GPU_GRID = ((16384, 65536, 131072), (1, 64, 2048), 4096)
CPU_GRID = ((16384, 65536, 131072), (1, 16), 1024)
QUICK_GRID = ((16384,), (1, 16), 256)


def encode_and_sort(args: Args) -> Tensor:
    """Encode all, keep the k largest as a TopK SAE does, decode what masks change."""
    x = args["hidden_states"] + args["residual"]
    bias = args["b_enc"].to(x.dtype)
    every = torch.addmm(bias, x, args["W_enc_rows"].T)
    top = every.topk(args["topk"], 1)
    kept = torch.zeros_like(every).scatter_(1, top.indices, top.values)
    edit = edit_of(args)
    mine = kept.gather(1, edit.latents).float()
    change = torch.where(mine > edit.gate, edit.scale * mine + edit.shift, 0.0)
    pool = args["W_dec_rows"]
    changes = pool.new_zeros(len(x), len(pool))
    changes.scatter_(1, edit.latents, change.to(pool.dtype))
    return torch.addmm(args["hidden_states"], changes, pool)


def run(machine: Machine) -> list[Table]:
    """Return the question's table."""
    check(machine)
    sizes, tokens, d_model = (
        QUICK_GRID if machine.quick else GPU_GRID if machine.on_gpu else CPU_GRID
    )
    table = Table("(c) Exact TopK", _note(machine, d_model), _columns())
    for d_sae in sizes:
        size = machine.dtype.itemsize
        needed = size * (2 * d_sae * d_model + 4 * max(tokens) * d_sae)
        if not machine.fits(needed + 4 * machine.cold_bytes):
            table.note += f" Left out, too little memory: d_sae {d_sae}."
            continue
        rows = dictionary(machine, d_sae, POOL, d_model)
        for num_tokens in tokens:
            for fire in FIRES:
                masks = min(num_tokens, MOST_MASKS)
                case = Case(num_tokens, LATENTS, d_model, masks, POOL, fire)
                machine.progress(f"(c) d_sae {d_sae} {case}")
                table.add(*measure_case(machine, case, rows))
    return [table]


def dictionary(machine: Machine, d_sae: int, pool: int, d_model: int) -> Rows:
    """Return the whole encoder, its first rows the pool, and the pool's decoder."""
    rows = random_rows(d_sae, d_model, machine.device, machine.dtype)
    rows.b_enc[:pool] = BIAS
    return Rows(rows.W_enc, rows.W_dec[:pool].clone(), rows.b_enc)


def gated(case: Case, args: Args) -> Args:
    """Return the arguments with TopK's gate: half of the masked latents exceed it."""
    if case.fire == "half":
        args["mask_gate"].fill_(BIAS)
    return {**args, "topk": TOPK}


def check(machine: Machine) -> None:
    """Check torch.topk's way against the definition, and ours, in float32."""
    case = SMALL
    exact = Machine(
        machine.device, torch.float32, machine.seconds, True, machine.progress,
        machine.triton,
    )  # fmt: skip
    args = gated(
        case, op_args(case, dictionary(exact, 96, case.pool, case.d_model), scale=LOUD)
    )
    args["topk"] = 8
    before = args["hidden_states"].clone()
    want = on_cpu(args)
    masked_edit_ref(**want)
    tolerance = TOLERANCE[torch.float32]
    other = encode_and_sort(args)
    verify("torch.topk", other, want["hidden_states"], before, tolerance)
    our_call(exact, [args])()
    verify("ours", args["hidden_states"], want["hidden_states"], before, tolerance)


def _columns() -> list[str]:
    return [
        "d_sae", "tokens", "masks", "fire", "ours us", "spread %", "torch.topk us",
        "its spread %", "torch.topk / ours", "difference",
    ]  # fmt: skip


def _note(machine: Machine, d_model: int) -> str:
    return paragraph(
        f"d_model {d_model}, masks of {LATENTS} latents of {POOL}, k = {TOPK}.",
        "torch.topk: encode the whole dictionary, torch.topk, scatter, edit, decode",
        "the pool's rows; in PyTorch. fire: half of the masked latents exceed their",
        "gate, so that ranks are counted, or none, the usual case, in which ours",
        "stops. Both ways give the definition's result in float32, or the run ends.",
        "difference: of the two on the timed batch in parts of the edit.",
        BFLOAT16 if machine.dtype != torch.float32 else "",
    )


def measure_case(machine: Machine, case: Case, rows: Rows) -> list[Value]:
    """Return a row."""
    off = same_result(machine, case, rows) if case.fire == "half" else None
    sets = several(case, rows, machine.cold_bytes, machine.most_sets)
    sets = [gated(case, args) for args in sets]
    found = machine.compare(
        {
            "ours": our_call(machine, sets),
            "sorted": rotating(encode_and_sort, [(args,) for args in sets[:1]]),
        }
    )
    ours, other = found["ours"], found["sorted"]
    shape: list[Value] = [len(rows.W_enc), case.tokens, case.masks, case.fire]
    times = [ours.us, ours.spread, other.us, other.spread]
    return [*shape, *times, other.median / ours.median, off]


def same_result(machine: Machine, case: Case, rows: Rows) -> float:
    """Return how far ours is off torch.topk's way on the timed batch.

    Raises: WrongResult in float32, where ranks must agree
    """
    args = gated(case, op_args(case, rows, scale=LOUD))
    before = args["hidden_states"].clone()
    want = encode_and_sort(args)
    our_call(machine, [args])()
    if machine.dtype != torch.float32:
        return difference(args["hidden_states"], want, before)
    tolerance = TOLERANCE[torch.float32]
    return verify("ours", args["hidden_states"], want, before, tolerance)
