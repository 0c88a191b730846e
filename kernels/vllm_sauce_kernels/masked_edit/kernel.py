# SPDX-License-Identifier: Apache-2.0
"""The op in Triton: which kernels are launched, and over how many programs.

Encode and decode (``kernel_tiles.py``); for TopK, ``kernel_rank.py`` between the two.
What is launched rests on shapes alone, so a graph can capture it; what the programs
then do, on the plan.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from vllm_sauce_kernels.masked_edit.kernel_rank import rank_kernel
from vllm_sauce_kernels.masked_edit.kernel_tiles import decode_kernel, encode_kernel
from vllm_sauce_kernels.masked_edit.plan import (
    BLOCK_LATENTS,
    FEW_TOKENS,
    LARGE_TILE,
    MAX_SPLITS,
    SMALL_TILE,
    TARGET_ITEMS,
)
from vllm_sauce_kernels.masked_edit.reference import Arguments

MAX_PARTIAL_ELEMENTS = 1 << 22
"""Most partial sums that splitting d_model may take: 16 MiB."""
ROWS_PER_PROGRAM = 1024
"""Rows of the dictionary that one ranking program passes."""


class Blocks(NamedTuple):
    """Sizes of what a program holds at a time."""

    tokens: int
    encode_d: int
    decode_d: int
    warps: int
    decode_registers: int
    """Of a thread; left alone, NVIDIA's assembler takes fewer and spills."""


SMALL = Blocks(SMALL_TILE, 128, 128, 4, 128)
LARGE = Blocks(LARGE_TILE, 64, 64, 4, 208)
ALONE_ENCODE_D = 256
"""Of a tile of one token, whatever the blocks."""
RANK_ROWS, RANK_D = 32, 64


class Launch(NamedTuple):
    """What all launches of one call share."""

    op: Arguments
    residual: Tensor
    """Or what stands in for it."""
    plan: Tensor
    """Or what stands in for it."""
    norms: Tensor
    constants: dict[str, Any]
    """HAS_RESIDUAL, NORMALIZE and PRECISION."""
    num_programs: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """Rows' strides of what encoding reads."""
        rows = (self.op.hidden_states, self.residual, self.op.W_enc_rows)
        return rows[0].stride(0), rows[1].stride(0), rows[2].stride(0)


def launch(op: Arguments) -> None:
    """Launch the kernels; nothing is read back, so a graph can capture it."""
    num_tokens, max_latents = op.hidden_states.shape[0], op.mask_latents.shape[1]
    if num_tokens == 0 or max_latents == 0:
        return
    norms = op.hidden_states.new_empty(
        num_tokens if op.normalize else 1, dtype=torch.float32
    )
    constants = {
        "HAS_RESIDUAL": op.residual is not None,
        "NORMALIZE": op.normalize,
        "PRECISION": precision(op.W_enc_rows.dtype),
    }
    call = Launch(
        op,
        op.hidden_states if op.residual is None else op.residual,
        op.slot_of_token if op.plan is None else op.plan,
        norms,
        constants,
        num_programs(op.hidden_states.device),
    )
    # Triton launches on the current device, which need not be the tensors' one.
    with torch.cuda.device_of(op.hidden_states):
        _launch(call)


def precision(pool: torch.dtype) -> str:
    """Return how ``kernel_parts.product`` multiplies with a pool's rows."""
    if pool in (torch.bfloat16, torch.float8_e4m3fn):
        return "bf16"
    # float16 has more bits than bfloat16 and less range than a coefficient.
    return "tf32" if pool == torch.float16 and not torch.version.hip else "ieee"


@cache
def num_programs(device: torch.device) -> int:
    """Return how many programs share out the work: enough to fill a GPU."""
    if device.type != "cuda":
        return 4
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return an NVIDIA GPU's compute capability; of all else, none."""
    nvidia = device.type == "cuda" and not torch.version.hip
    return torch.cuda.get_device_capability(device) if nvidia else (0, 0)


def alone_decode_d(device: torch.device) -> int:
    """Return what is decoded at a time of a tile of one token."""
    # Of 512 an A100 spills two registers.
    return 512 if capability(device) >= (9, 0) else 256


def splits_of(num_tokens: int, max_latents: int, topk: int) -> int:
    """Return the most parts that encoding is split into over d_model."""
    # Ranks compare whole sums.
    if topk:
        return 1
    room = MAX_PARTIAL_ELEMENTS // (num_tokens * max_latents)
    return max(1, min(MAX_SPLITS, 2 * TARGET_ITEMS // num_tokens, room))


def _launch(call: Launch) -> None:
    op, planned = call.op, call.op.plan is not None
    (num_tokens, d_model), max_latents = (
        op.hidden_states.shape,
        op.mask_latents.shape[1],
    )
    max_tokens = op.slot_of_token.shape[0]
    blocks = SMALL if num_tokens <= FEW_TOKENS or not planned else LARGE
    num_splits = splits_of(num_tokens, max_latents, op.topk)
    hidden_pre = op.hidden_states.new_empty(
        (num_splits, num_tokens, max_latents), dtype=torch.float32
    )
    tile = {
        "HAS_PLAN": planned,
        "BLOCK_TOKENS": blocks.tokens,
        "BLOCK_LATENTS": BLOCK_LATENTS,
        "num_warps": blocks.warps,
    }
    encode_kernel[(call.num_programs,)](
        op.hidden_states, call.residual, op.slot_of_token, call.plan, op.mask_latents,
        op.mask_len, op.W_enc_rows, op.b_enc, op.edited_tokens, hidden_pre, call.norms,
        *call.strides, num_tokens, max_tokens, max_latents,
        triton.cdiv(max_latents, BLOCK_LATENTS), num_splits, d_model, **call.constants,
        **tile, BLOCK_D=blocks.encode_d, ALONE=op.topk == 0, ALONE_D=ALONE_ENCODE_D,
    )  # fmt: skip
    registers = {} if torch.version.hip else {"maxnreg": blocks.decode_registers}
    ranks = _launch_ranks(call, hidden_pre) if op.topk > 0 else hidden_pre
    decode_kernel[(call.num_programs,)](
        op.hidden_states, op.slot_of_token, call.plan, op.mask_latents, op.mask_scale,
        op.mask_shift, op.mask_gate, op.mask_len, op.W_dec_rows, hidden_pre, call.norms,
        ranks, call.strides[0], op.W_dec_rows.stride(0), num_tokens, max_tokens,
        max_latents, num_splits, d_model, NORMALIZE=op.normalize, TOPK=op.topk,
        PRECISION=precision(op.W_dec_rows.dtype), **tile, BLOCK_D=blocks.decode_d,
        ALONE_D=alone_decode_d(op.hidden_states.device), MAX_SPLITS=MAX_SPLITS,
        TARGET_ITEMS=TARGET_ITEMS,
        **registers,
    )  # fmt: skip


def _launch_ranks(call: Launch, hidden_pre: Tensor) -> Tensor:
    op = call.op
    (num_tokens, d_model), num_rows = op.hidden_states.shape, len(op.W_enc_rows)
    ranks = torch.zeros_like(hidden_pre[0], dtype=torch.int32)
    blocks = SMALL if num_tokens <= SMALL.tokens else LARGE
    grid = (
        triton.cdiv(num_tokens, blocks.tokens),
        triton.cdiv(num_rows, ROWS_PER_PROGRAM),
    )
    rank_kernel[grid](
        op.hidden_states, call.residual, op.slot_of_token, op.mask_latents,
        op.mask_scale, op.mask_shift, op.mask_gate, op.mask_len, op.W_enc_rows,
        op.b_enc, hidden_pre, ranks, *call.strides, num_tokens,
        op.mask_latents.shape[1], num_rows, d_model, **call.constants,
        BLOCK_TOKENS=blocks.tokens, BLOCK_ROWS=RANK_ROWS, BLOCK_D=RANK_D,
        BLOCK_LATENTS=BLOCK_LATENTS, ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
        num_warps=blocks.warps,
    )  # fmt: skip
    return ranks
