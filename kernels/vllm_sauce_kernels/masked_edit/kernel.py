# SPDX-License-Identifier: Apache-2.0
"""The op in Triton: which kernels are launched, and over how many programs.

Forms: ``kernel_tiles.py`` (any batch) and ``kernel_union.py`` (many overlapping masks);
for TopK, ``kernel_rank.py`` between the former's two launches. What is launched rests
on shapes alone, so a graph can capture it; what the programs then do, on the plan.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from vllm_sauce_kernels.masked_edit.kernel_parts import Batch, Masks, Rows, Stream
from vllm_sauce_kernels.masked_edit.kernel_rank import rank_kernel
from vllm_sauce_kernels.masked_edit.kernel_tiles import decode_kernel, encode_kernel
from vllm_sauce_kernels.masked_edit.kernel_union import (
    Union,
    union_clamp_kernel,
    union_decode_kernel,
    union_encode_kernel,
)
from vllm_sauce_kernels.masked_edit.plan import (
    BLOCK_LATENTS,
    MAX_SPLITS,
    TARGET_ITEMS,
    TILE_TOKENS,
)
from vllm_sauce_kernels.masked_edit.reference import Arguments

MAX_UNION_ELEMENTS = 1 << 22
"""Most coefficients of the union form: 16 MiB, twice."""
MAX_PARTIAL_ELEMENTS = 1 << 22
"""Most partial sums that splitting d_model may take: 16 MiB."""
FEW_TOKENS = 256
"""Up to here a tile is 16 tokens: decoding, where most tiles hold one."""
ROWS_PER_PROGRAM = 1024
"""Rows of the dictionary that one ranking program passes."""


class Blocks(NamedTuple):
    """A tile's tokens and a part of d_model; chosen by hand, not tuned on a device."""

    tokens: int
    d: int


SMALL, LARGE = Blocks(16, 128), Blocks(TILE_TOKENS, 64)
UNION_ROWS = 64
RANK_ROWS, RANK_D = 32, 64


class Launch(NamedTuple):
    """What all launches of one call share."""

    op: Arguments
    stream: Stream
    masks: Masks
    W_enc_rows: Rows
    W_dec_rows: Rows
    norms: Tensor
    constants: dict[str, Any]
    """NORMALIZE and PRECISION."""
    num_programs: int


def launch(op: Arguments) -> None:
    """Launch the kernels; nothing is read back, so a graph can capture it."""
    num_tokens, d_model = op.hidden_states.shape
    max_latents = op.mask_latents.shape[1]
    if num_tokens == 0 or max_latents == 0:
        return
    stride = 0 if op.residual is None else op.residual.stride(0)
    norms = op.hidden_states.new_empty(
        num_tokens if op.normalize else 1, dtype=torch.float32
    )
    masks = Masks(
        op.mask_latents, op.mask_scale, op.mask_shift, op.mask_gate, op.mask_len,
        max_latents,
    )  # fmt: skip
    call = Launch(
        op,
        Stream(
            op.hidden_states, op.residual, op.hidden_states.stride(0), stride, d_model
        ),
        masks,
        Rows(op.W_enc_rows, op.W_enc_rows.stride(0)),
        Rows(op.W_dec_rows, op.W_dec_rows.stride(0)),
        norms,
        {"NORMALIZE": op.normalize, "PRECISION": precision(op.W_enc_rows.dtype)},
        num_programs(op.hidden_states.device),
    )
    elements = num_tokens * op.W_dec_rows.shape[0]
    union = op.plan is not None and op.topk == 0 and elements <= MAX_UNION_ELEMENTS
    # Triton launches on the current device, which need not be the tensors' one.
    with torch.cuda.device_of(op.hidden_states):
        _launch_tiles(call, union)
        if union:
            _launch_union(call)


def precision(pool: torch.dtype) -> str:
    """Return how ``kernel_parts.product`` multiplies with a pool's rows."""
    if pool in (torch.bfloat16, torch.float8_e4m3fn):
        return "split"
    # float16 has more bits than bfloat16 and less range than a coefficient.
    return "tf32x3" if pool == torch.float16 and not torch.version.hip else "ieee"


@cache
def num_programs(device: torch.device) -> int:
    """Return how many programs share out the work: enough to fill a GPU."""
    if device.type != "cuda":
        return 4
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def splits_of(num_tokens: int, max_latents: int, topk: int) -> int:
    """Return the most parts that encoding is split into over d_model."""
    # Ranks compare whole sums.
    if topk:
        return 1
    room = MAX_PARTIAL_ELEMENTS // (num_tokens * max_latents)
    return max(1, min(MAX_SPLITS, 2 * TARGET_ITEMS // num_tokens, room))


def _launch_tiles(call: Launch, union: bool) -> None:
    op, planned = call.op, call.op.plan is not None
    num_tokens, max_latents = len(op.hidden_states), call.masks.max_latents
    batch = Batch(op.slot_of_token, op.plan, num_tokens, len(op.slot_of_token))
    blocks = SMALL if num_tokens <= FEW_TOKENS or not planned else LARGE
    num_splits = splits_of(num_tokens, max_latents, op.topk)
    hidden_pre = op.hidden_states.new_empty(
        (num_splits, num_tokens, max_latents), dtype=torch.float32
    )
    tile = {
        "HAS_UNION": union,
        "SUBTILES": TILE_TOKENS // blocks.tokens if planned else 1,
        "BLOCK_TOKENS": blocks.tokens,
        "BLOCK_LATENTS": BLOCK_LATENTS,
        "BLOCK_D": blocks.d,
    }
    encode_kernel[(call.num_programs,)](
        call.stream, batch, call.masks, call.W_enc_rows, op.b_enc, op.edited_tokens,
        hidden_pre, call.norms, triton.cdiv(max_latents, BLOCK_LATENTS), num_splits,
        **call.constants, **tile,
    )  # fmt: skip
    ranks = _launch_ranks(call, hidden_pre) if op.topk > 0 else hidden_pre
    decode_kernel[(call.num_programs,)](
        call.stream, batch, call.masks, call.W_dec_rows, hidden_pre, call.norms, ranks,
        num_splits, NORMALIZE=op.normalize, TOPK=op.topk,
        PRECISION=precision(op.W_dec_rows.dtype), **tile,
    )  # fmt: skip


def _launch_ranks(call: Launch, hidden_pre: Tensor) -> Tensor:
    op, num_tokens, num_rows = call.op, hidden_pre.shape[1], len(call.op.W_enc_rows)
    ranks = torch.zeros_like(hidden_pre[0], dtype=torch.int32)
    blocks = SMALL if num_tokens <= SMALL.tokens else LARGE
    grid = (
        triton.cdiv(num_tokens, blocks.tokens),
        triton.cdiv(num_rows, ROWS_PER_PROGRAM),
    )
    rank_kernel[grid](
        call.stream, op.slot_of_token, call.masks, call.W_enc_rows, op.b_enc,
        hidden_pre, ranks, num_tokens, num_rows, **call.constants,
        BLOCK_TOKENS=blocks.tokens, BLOCK_ROWS=RANK_ROWS, BLOCK_D=RANK_D,
        ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
    )  # fmt: skip
    return ranks


def _launch_union(call: Launch) -> None:
    op, num_pool = call.op, len(call.op.W_dec_rows)
    assert op.plan is not None
    hidden_pre = op.hidden_states.new_empty(
        (len(op.hidden_states), num_pool), dtype=torch.float32
    )
    at = len(op.plan) - 2 * num_pool
    union = Union(op.plan, at, num_pool, hidden_pre, torch.empty_like(hidden_pre))
    grid = (call.num_programs,)
    shape = {
        "BLOCK_TOKENS": LARGE.tokens,
        "BLOCK_ROWS": UNION_ROWS,
        "BLOCK_D": LARGE.d,
    }
    union_encode_kernel[grid](
        call.stream, union, call.W_enc_rows, op.b_enc, call.norms, **call.constants,
        **shape,
    )  # fmt: skip
    union_clamp_kernel[grid](
        union, op.slot_of_token, call.masks, op.edited_tokens, call.norms,
        NORMALIZE=op.normalize, BLOCK_LATENTS=128,
    )  # fmt: skip
    union_decode_kernel[grid](
        call.stream, union, call.W_dec_rows, PRECISION=precision(op.W_dec_rows.dtype),
        **shape,
    )  # fmt: skip
