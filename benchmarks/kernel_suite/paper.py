# SPDX-License-Identifier: Apache-2.0
"""Question b: against the paper's way, which encodes and decodes everything."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.kernel_suite.calls import our_call
from benchmarks.kernel_suite.cases import (
    FIRES,
    LOUD,
    POOL,
    SMALL,
    Args,
    Case,
    Rows,
    op_args,
    random_rows,
    several,
)
from benchmarks.kernel_suite.machine import Machine
from benchmarks.kernel_suite.report import Table, Value, paragraph
from benchmarks.kernel_suite.timing import rotating
from benchmarks.kernel_suite.verify import TOLERANCE, on_cpu, verify
from vllm_sauce_kernels.masked_edit import masked_edit_ref

LATENTS, MOST_MASKS = 128, 16
SILENT = -2.3
"""Bias of latents in no mask: one in a hundred fires."""

# Rows of the dictionary, tokens, d_model.
GPU_GRID = ((16384, 65536, 131072), (1, 64, 2048), 4096)
CPU_GRID = ((16384, 65536, 131072), (1, 16, 64), 1024)
QUICK_GRID = ((16384,), (1, 16), 256)


class Sae(NamedTuple):
    """A whole SAE: W_enc and W_dec [d_sae, d_model], b_enc [d_sae], b_dec [d_model]."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor


class Edit(NamedTuple):
    """Each token's masked latents. [num_tokens, latents]"""

    latents: Tensor
    scale: Tensor
    shift: Tensor
    gate: Tensor


def full(x: Tensor, sae: Sae, edit: Edit) -> Tensor:
    """Encode, edit, decode, and add what the SAE cannot reconstruct."""
    features = torch.relu(torch.addmm(sae.b_enc, x - sae.b_dec, sae.W_enc.T))
    error = x - torch.addmm(sae.b_dec, features, sae.W_dec)
    edited = features.scatter(1, edit.latents, clamped(features, edit))
    return torch.addmm(sae.b_dec, edited, sae.W_dec) + error


def folded(x: Tensor, sae: Sae, edit: Edit) -> Tensor:
    """Do the same with one decoding, of the difference: error and b_dec cancel."""
    features = torch.relu(torch.addmm(sae.b_enc, x - sae.b_dec, sae.W_enc.T))
    change = clamped(features, edit) - features.gather(1, edit.latents)
    difference = torch.zeros_like(features).scatter_(1, edit.latents, change)
    return torch.addmm(x, difference, sae.W_dec)


def clamped(features: Tensor, edit: Edit) -> Tensor:
    """Return what becomes of the masked features. [num_tokens, latents]"""
    mine = features.gather(1, edit.latents).float()
    changed = torch.where(mine > edit.gate, edit.scale * mine + edit.shift, 0.0)
    return (mine + changed).to(features.dtype)


def edit_of(args: Args) -> Edit:
    """Return the edit that the op's tables say."""
    slots = args["slot_of_token"].long()
    names = ("mask_latents", "mask_scale", "mask_shift", "mask_gate")
    latents, *rest = (args[name][slots] for name in names)
    return Edit(latents.long(), *rest)


def make_sae(d_sae: int, pool: int, d_model: int, machine: Machine) -> Sae:
    """Return a random SAE of which few latents fire, and half of the pool's."""
    rows = random_rows(d_sae, d_model, machine.device, machine.dtype)
    gen = torch.Generator(machine.device).manual_seed(1)
    b_dec = torch.randn(d_model, generator=gen, device=machine.device) / 10
    b_enc = torch.full((d_sae,), SILENT, device=machine.device)
    b_enc[:pool] = 0
    return Sae(rows.W_enc, rows.W_dec, b_enc.to(machine.dtype), b_dec.to(machine.dtype))


def pool_of(sae: Sae, pool: int) -> Rows:
    """Return the rows that ours needs, b_dec folded into the bias."""
    W_enc = sae.W_enc[:pool].clone()
    b_enc = sae.b_enc[:pool].float() - W_enc.float() @ sae.b_dec.float()
    return Rows(W_enc, sae.W_dec[:pool].clone(), b_enc)


def one_stream(args: Args) -> Args:
    """Return the arguments with hidden states and residual already added."""
    x = args["hidden_states"] + args["residual"]
    return {**args, "hidden_states": x, "residual": None}


def run(machine: Machine) -> list[Table]:
    """Return the question's table."""
    check(machine)
    sizes, tokens, d_model = (
        QUICK_GRID if machine.quick else GPU_GRID if machine.on_gpu else CPU_GRID
    )
    table = Table("(b) Against the paper's way", _note(machine, d_model), _columns())
    for d_sae in sizes:
        if not machine.fits(needed_bytes(machine, d_sae, max(tokens), d_model)):
            table.note += f" Left out, too little memory: d_sae {d_sae}."
            continue
        sae = make_sae(d_sae, POOL, d_model, machine)
        for num_tokens in tokens:
            for fire in FIRES:
                masks = min(num_tokens, MOST_MASKS)
                case = Case(num_tokens, LATENTS, d_model, masks, POOL, fire)
                machine.progress(f"(b) d_sae {d_sae} {case}")
                table.add(*measure_case(machine, case, sae))
    return [table]


def needed_bytes(machine: Machine, d_sae: int, tokens: int, d_model: int) -> int:
    """Return an upper bound of what a dictionary takes, features included."""
    size = machine.dtype.itemsize
    return size * (2 * d_sae * d_model + 5 * tokens * d_sae) + 4 * machine.cold_bytes


def check(machine: Machine) -> None:
    """Check both ways against the definition, in float32, before ours is compared."""
    case = SMALL
    exact = Machine(
        machine.device, torch.float32, machine.seconds, True, machine.progress, False
    )
    sae = make_sae(96, case.pool, case.d_model, exact)
    args = one_stream(op_args(case, pool_of(sae, case.pool), scale=LOUD))
    before = args["hidden_states"]
    want = on_cpu(args)
    masked_edit_ref(**want)
    for way in (full, folded):
        got = way(before, sae, edit_of(args))
        tolerance = TOLERANCE[torch.float32]
        verify(way.__name__, got, want["hidden_states"], before, tolerance)


def _columns() -> list[str]:
    return [
        "d_sae", "tokens", "masks", "fire", "ours us", "spread %", "paper us",
        "paper's spread %", "folded us", "paper / ours", "folded / ours", "difference",
    ]  # fmt: skip


def _note(machine: Machine, d_model: int) -> str:
    return paragraph(
        f"d_model {d_model}, masks of {LATENTS} latents. paper: relu((x - b_dec)",
        "W_enc + b_enc), edit, W_dec + b_dec + (x - reconstruction of the unedited),",
        "in PyTorch and the same dtype; its scatter indices are made beforehand.",
        "folded: the same with one decoding, of the difference, which the paper does",
        "not do. fire: half of the masked latents, or none. difference: of ours and",
        "the paper's result on the timed batch, in parts of the edit; more than",
        f"{TOLERANCE[machine.dtype]} ends the run. No residual tensor.",
        "Target on a GPU: at least 50 x at 65,536." if machine.on_gpu else "",
    )


def measure_case(machine: Machine, case: Case, sae: Sae) -> list[Value]:
    """Return a row, after both results were compared."""
    rows = pool_of(sae, case.pool)
    off = None
    if case.fire == "half":
        off = same_result(machine, case, sae, rows)
    sets = several(case, rows, machine.cold_bytes, machine.most_sets)
    sets = [one_stream(args) for args in sets]
    other = [(args["hidden_states"], sae, edit_of(args)) for args in sets[:1]]
    found = machine.compare(
        {
            "ours": our_call(machine, sets),
            "paper": rotating(full, other),
            "folded": rotating(folded, other),
        }
    )
    ours, paper, once = (found[name] for name in ("ours", "paper", "folded"))
    shape: list[Value] = [len(sae.W_enc), case.tokens, case.masks, case.fire]
    times = [ours.us, ours.spread, paper.us, paper.spread, once.us]
    ratios = [paper.median / ours.median, once.median / ours.median]
    return [*shape, *times, *ratios, off]


def same_result(machine: Machine, case: Case, sae: Sae, rows: Rows) -> float:
    """Return how far ours is off the paper's way. Raises: WrongResult"""
    args = one_stream(op_args(case, rows, scale=LOUD))
    before = args["hidden_states"].clone()
    want = full(before, sae, edit_of(args))
    once = folded(before, sae, edit_of(args))
    tolerance = TOLERANCE[machine.dtype]
    verify("folded", once, want, before, tolerance)
    our_call(machine, [args])()
    return verify("ours", args["hidden_states"], want, before, tolerance)
