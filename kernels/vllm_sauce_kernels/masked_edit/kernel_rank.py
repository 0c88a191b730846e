# SPDX-License-Identifier: Apache-2.0
"""TopK: how many latents of the whole dictionary rank before each that fires.

Between the tiles form's two launches. A program holds a tile of tokens, whatever their
masks, against a range of the dictionary's rows, so a row is read once for the tile; the
pre-activations of all latents never exist together. Tiles where no masked latent fires
are left at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import (
    STEP_NUMBERS,
    Edits,
    Rows,
    Stream,
    edit_of,
    encode_rows,
    token_norms,
)


class Masks(NamedTuple):
    """What the masks of a tile's tokens say, and what was encoded for them."""

    latents_ptr: Any
    edits: Any
    hidden_pre_ptr: Any
    max_latents: Any
    slot: Any
    token: Any
    lens: Any


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def firing(masks, latent):  # type: ignore[no-untyped-def]
    """Return tokens' pre-activations of their masks' latents, and which may count."""
    live = latent[None, :] < masks.lens[:, None]
    at = masks.token[:, None] * masks.max_latents + latent[None, :]
    pre = tl.load(masks.hidden_pre_ptr + at, mask=live, other=0.0)
    entry = masks.slot[:, None] * masks.max_latents + latent[None, :]
    gate, scale, shift = edit_of(masks.edits, entry, live)
    return pre, live & (pre > gate) & (scale * pre + shift != 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def count_firing(masks, longest, BLOCK_LATENTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return how many latents of the tile's masks may count."""
    some = 0
    for start in range(0, longest, BLOCK_LATENTS):
        pre, fires = firing(masks, start + tl.arange(0, BLOCK_LATENTS))
        some += tl.sum(tl.sum(fires.to(tl.int32), axis=0), axis=0)
    return some


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def count_before(ranks_ptr, masks, longest, every, row, inside):  # type: ignore[no-untyped-def]
    """rank_j += rows that are larger than latent j, or equal with a lower number."""
    for one in range(0, longest):
        latent = one + tl.arange(0, 1)
        pre, fires = firing(masks, latent)
        if tl.sum(tl.sum(fires.to(tl.int32), axis=0), axis=0) > 0:
            entry = masks.slot[:, None] * masks.max_latents + latent[None, :]
            mine = tl.load(masks.latents_ptr + entry, mask=fires, other=0)
            lower = row[None, :] < mine
            before = (every > pre) | ((every == pre) & lower)
            # The latent's own value may differ from itself by a rounding here.
            before = before & (row[None, :] != mine) & inside[None, :]
            count = tl.sum(before.to(tl.int32), axis=1)[:, None]
            at = masks.token[:, None] * masks.max_latents + latent[None, :]
            tl.atomic_add(ranks_ptr + at, count, mask=fires)


@triton.jit(do_not_specialize=STEP_NUMBERS)  # type: ignore[untyped-decorator, unused-ignore]
def rank_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    slot_of_token_ptr,
    mask_latents_ptr,
    mask_scale_ptr,
    mask_shift_ptr,
    mask_gate_ptr,
    mask_len_ptr,
    W_enc_rows_ptr,
    b_enc_ptr,
    hidden_pre_ptr,
    ranks_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    num_tokens,
    max_latents,
    num_rows,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
):
    """Count what ranks before each latent that fires, in this program's rows."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    there = token < num_tokens
    slot = tl.load(slot_of_token_ptr + token, mask=there, other=-1).to(tl.int64)
    there = slot >= 0
    lens = tl.load(mask_len_ptr + slot, mask=there, other=0)
    edits = Edits(mask_scale_ptr, mask_shift_ptr, mask_gate_ptr)
    masks = Masks(
        mask_latents_ptr, edits, hidden_pre_ptr, max_latents, slot, token, lens
    )
    longest = tl.max(lens, axis=0)
    if count_firing(masks, longest, BLOCK_LATENTS) == 0:
        return
    stream = Stream(
        hidden_states_ptr, residual_ptr, hidden_states_stride, residual_stride, d_model
    )
    mean, divisor, out = token_norms(
        stream, token, there, HAS_RESIDUAL, NORMALIZE, BLOCK_D
    )
    first = tl.program_id(1).to(tl.int64) * ROWS_PER_PROGRAM
    last = tl.minimum(first + ROWS_PER_PROGRAM, num_rows)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = row < last
        every = encode_rows(
            stream, Rows(W_enc_rows_ptr, W_enc_rows_stride), token, there, row, inside,
            mean, divisor, 0, d_model, HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_D,
        )  # fmt: skip
        every += tl.load(b_enc_ptr + row, mask=inside, other=0.0)[None, :]
        count_before(ranks_ptr, masks, longest, every, row, inside)
