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

from vllm_sauce_kernels.masked_edit.kernel_rank import rank_kernel
from vllm_sauce_kernels.masked_edit.kernel_tiles import decode_kernel, encode_kernel
from vllm_sauce_kernels.masked_edit.kernel_union import (
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

MAX_UNION_ELEMENTS = 1 << 22
"""Most coefficients of the union form: 16 MiB, twice."""
MAX_PARTIAL_ELEMENTS = 1 << 22
"""Most partial sums that splitting d_model may take: 16 MiB."""
FEW_TOKENS = 256
"""Up to here a tile is 16 tokens: decoding, where most tiles hold one."""
ROWS_PER_PROGRAM = 1024
"""Rows of the dictionary that one ranking program passes."""


class Blocks(NamedTuple):
    """Block sizes of the tiles form; chosen by hand, not tuned on a device."""

    tokens: int
    encode_d: int
    decode_d: int
    warps: int


SMALL, LARGE = Blocks(16, 128, 128, 4), Blocks(TILE_TOKENS, 64, 64, 4)
UNION = Blocks(TILE_TOKENS, 64, 64, 4)
UNION_ROWS = 64
RANK_ROWS, RANK_D = 32, 64


class Launch(NamedTuple):
    """What all launches of one call share."""

    hidden_states: Tensor
    residual: Tensor
    slot_of_token: Tensor
    plan: Tensor
    mask_latents: Tensor
    mask_scale: Tensor
    mask_shift: Tensor
    mask_gate: Tensor
    mask_len: Tensor
    W_enc_rows: Tensor
    W_dec_rows: Tensor
    b_enc: Tensor
    edited_tokens: Tensor
    norms: Tensor
    topk: int
    constants: dict[str, Any]
    """HAS_RESIDUAL, NORMALIZE and PRECISION."""
    has_plan: bool
    num_programs: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """Rows' strides of what encoding reads."""
        rows = (self.hidden_states, self.residual, self.W_enc_rows)
        return rows[0].stride(0), rows[1].stride(0), rows[2].stride(0)


def launch(
    hidden_states: Tensor,
    residual: Tensor | None,
    slot_of_token: Tensor,
    mask_latents: Tensor,
    mask_scale: Tensor,
    mask_shift: Tensor,
    mask_gate: Tensor,
    mask_len: Tensor,
    W_enc_rows: Tensor,
    W_dec_rows: Tensor,
    b_enc: Tensor,
    edited_tokens: Tensor,
    topk: int = 0,
    normalize: int = 0,
    plan: Tensor | None = None,
) -> None:
    """Launch the kernels; nothing is read back, so a graph can capture it.

    Shapes: see the package's docstring.
    """
    num_tokens, max_latents = hidden_states.shape[0], mask_latents.shape[1]
    if num_tokens == 0 or max_latents == 0:
        return
    call = Launch(
        hidden_states, hidden_states if residual is None else residual, slot_of_token,
        slot_of_token if plan is None else plan, mask_latents, mask_scale, mask_shift,
        mask_gate, mask_len, W_enc_rows, W_dec_rows, b_enc, edited_tokens,
        hidden_states.new_empty(num_tokens if normalize else 1, dtype=torch.float32),
        topk,
        {
            "HAS_RESIDUAL": residual is not None,
            "NORMALIZE": normalize,
            "PRECISION": precision(W_enc_rows.dtype),
        },
        plan is not None,
        num_programs(hidden_states.device),
    )  # fmt: skip
    elements = num_tokens * W_dec_rows.shape[0]
    union = plan is not None and topk == 0 and elements <= MAX_UNION_ELEMENTS
    # Triton launches on the current device, which need not be the tensors' one.
    with torch.cuda.device_of(hidden_states):
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


def _max_tokens(call: Launch) -> int:
    return call.slot_of_token.shape[0]


def _launch_tiles(call: Launch, union: bool) -> None:
    (num_tokens, d_model), max_latents = call.hidden_states.shape, _max_latents(call)
    blocks = SMALL if num_tokens <= FEW_TOKENS or not call.has_plan else LARGE
    num_splits = splits_of(num_tokens, max_latents, call.topk)
    hidden_pre = call.hidden_states.new_empty(
        (num_splits, num_tokens, max_latents), dtype=torch.float32
    )
    ranked = call.topk > 0
    ranks = torch.zeros_like(hidden_pre[0], dtype=torch.int32) if ranked else hidden_pre
    tile = {
        "HAS_PLAN": call.has_plan,
        "HAS_UNION": union,
        "SUBTILES": TILE_TOKENS // blocks.tokens if call.has_plan else 1,
        "BLOCK_TOKENS": blocks.tokens,
        "BLOCK_LATENTS": BLOCK_LATENTS,
        "num_warps": blocks.warps,
    }
    encode_kernel[(call.num_programs,)](
        call.hidden_states, call.residual, call.slot_of_token, call.plan,
        call.mask_latents, call.mask_len, call.W_enc_rows, call.b_enc,
        call.edited_tokens, hidden_pre, call.norms, *call.strides, num_tokens,
        _max_tokens(call), max_latents, triton.cdiv(max_latents, BLOCK_LATENTS),
        num_splits, d_model, **call.constants, **tile, BLOCK_D=blocks.encode_d,
    )  # fmt: skip
    if ranked:
        _launch_ranks(call, hidden_pre, ranks)
    decode_kernel[(call.num_programs,)](
        call.hidden_states, call.slot_of_token, call.plan, call.mask_latents,
        call.mask_scale, call.mask_shift, call.mask_gate, call.mask_len,
        call.W_dec_rows, hidden_pre, call.norms, ranks, call.strides[0],
        call.W_dec_rows.stride(0), num_tokens, _max_tokens(call), max_latents,
        num_splits, d_model, call.topk, RANKED=ranked,
        NORMALIZE=call.constants["NORMALIZE"],
        PRECISION=precision(call.W_dec_rows.dtype),
        **tile, BLOCK_D=blocks.decode_d,
    )  # fmt: skip


def _max_latents(call: Launch) -> int:
    return call.mask_latents.shape[1]


def _launch_ranks(call: Launch, hidden_pre: Tensor, ranks: Tensor) -> None:
    (num_tokens, d_model), num_rows = call.hidden_states.shape, len(call.W_enc_rows)
    blocks = SMALL if num_tokens <= SMALL.tokens else LARGE
    grid = (
        triton.cdiv(num_tokens, blocks.tokens),
        triton.cdiv(num_rows, ROWS_PER_PROGRAM),
    )
    rank_kernel[grid](
        call.hidden_states, call.residual, call.slot_of_token, call.mask_latents,
        call.mask_scale, call.mask_shift, call.mask_gate, call.mask_len,
        call.W_enc_rows, call.b_enc, hidden_pre, ranks, *call.strides, num_tokens,
        _max_latents(call), num_rows, d_model, **call.constants,
        BLOCK_TOKENS=blocks.tokens, BLOCK_ROWS=RANK_ROWS, BLOCK_D=RANK_D,
        ROWS_PER_PROGRAM=ROWS_PER_PROGRAM, num_warps=blocks.warps,
    )  # fmt: skip


def _launch_union(call: Launch) -> None:
    (num_tokens, d_model), num_pool = call.hidden_states.shape, len(call.W_dec_rows)
    hidden_pre = call.hidden_states.new_empty(
        (num_tokens, num_pool), dtype=torch.float32
    )
    coefficients = torch.empty_like(hidden_pre)
    union_at = len(call.plan) - 2 * num_pool
    grid = (call.num_programs,)
    shape = {
        "BLOCK_TOKENS": UNION.tokens,
        "BLOCK_ROWS": UNION_ROWS,
        "num_warps": UNION.warps,
    }
    union_encode_kernel[grid](
        call.hidden_states, call.residual, call.plan, call.W_enc_rows, call.b_enc,
        hidden_pre, coefficients, call.norms, *call.strides, union_at, num_pool,
        d_model, **call.constants, **shape, BLOCK_D=UNION.encode_d,
    )  # fmt: skip
    union_clamp_kernel[grid](
        call.slot_of_token, call.plan, call.mask_latents, call.mask_scale,
        call.mask_shift, call.mask_gate, call.mask_len, call.edited_tokens, hidden_pre,
        coefficients, call.norms, union_at, _max_latents(call), num_pool,
        NORMALIZE=call.constants["NORMALIZE"], BLOCK_LATENTS=128,
    )  # fmt: skip
    union_decode_kernel[grid](
        call.hidden_states, call.plan, call.W_dec_rows, coefficients, call.strides[0],
        call.W_dec_rows.stride(0), union_at, num_pool, d_model,
        PRECISION=precision(call.W_dec_rows.dtype), **shape, BLOCK_D=UNION.decode_d,
    )  # fmt: skip
