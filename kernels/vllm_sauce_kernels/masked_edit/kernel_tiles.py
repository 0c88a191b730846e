# SPDX-License-Identifier: Apache-2.0
"""The tiles form: tokens that share a mask go through the tensor cores together.

Two launches. ``encode_kernel`` computes the pre-activations of a tile's masked latents,
``decode_kernel`` clamps them and adds the change. No change can be seen by another
latent's pre-activation then, on every GPU, without a barrier between programs.

Both are a fixed number of programs that share out the items of work, whose number the
device reads from the plan: a captured graph fits every batch, and an idle batch costs
what empty programs cost. Encoding is split over d_model where there are few items, into
sums that ``decode_kernel`` adds up in a fixed order.
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
    add_change,
    decode_rows,
    edit_of,
    encode_rows,
    tile_of,
    token_norms,
)
from vllm_sauce_kernels.masked_edit.kernel_tokens import decode_token, encode_token


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def work_of(  # type: ignore[no-untyped-def]
    plan_ptr,
    num_tokens,
    num_blocks,
    num_splits,
    HAS_PLAN: tl.constexpr,
):
    """Return the numbers of tiles, blocks of latents, and splits of d_model."""
    num_tiles = num_tokens
    if HAS_PLAN:
        num_tiles = tl.load(plan_ptr)
        num_blocks = tl.maximum(tl.load(plan_ptr + 1), 1)
        # What the scratch has room for is not the plan's to exceed.
        num_splits = tl.maximum(tl.minimum(tl.load(plan_ptr + 2), num_splits), 1)
    return num_tiles, num_blocks, num_splits


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_latents(  # type: ignore[no-untyped-def]
    stream,
    W_enc_rows,
    b_enc_ptr,
    row_ptr,
    hidden_pre_ptr,
    norms_ptr,
    token,
    there,
    live,
    split,
    per_split,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a split's part of a tile's pre-activations, and its tokens' norms."""
    mean, divisor, out = token_norms(
        stream, token, there, HAS_RESIDUAL, NORMALIZE, BLOCK_D
    )
    if NORMALIZE != 0:
        tl.store(norms_ptr + token, out, mask=there)
    # Entries beyond mask_len are garbage, also as row numbers: never loaded.
    row = tl.load(row_ptr, mask=live, other=0).to(tl.int64)
    first_d = split * per_split
    hidden_pre = encode_rows(
        stream, W_enc_rows, token, there, row, live, mean, divisor, first_d,
        tl.minimum(first_d + per_split, stream.d_model), HAS_RESIDUAL, NORMALIZE,
        PRECISION, BLOCK_D,
    )  # fmt: skip
    if split == 0:
        hidden_pre += tl.load(b_enc_ptr + row, mask=live, other=0.0)[None, :]
    tl.store(hidden_pre_ptr, hidden_pre, mask=there[:, None] & live[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_item(  # type: ignore[no-untyped-def]
    stream,
    W_enc_rows,
    b_enc_ptr,
    row_ptr,
    hidden_pre_ptr,
    norms_ptr,
    token,
    count,
    first,
    latent,
    live,
    split,
    per_split,
    num_tokens,
    max_latents,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALONE: tl.constexpr,
    ALONE_D: tl.constexpr,
):
    """Encode a block of latents for a tile, or for the only token of one."""
    if ALONE and (count == 1):
        at_first = (split * num_tokens + first) * max_latents + latent
        encode_token(
            stream, W_enc_rows, b_enc_ptr, row_ptr, hidden_pre_ptr + at_first,
            norms_ptr, first, live, split, per_split, HAS_RESIDUAL, NORMALIZE, ALONE_D,
        )  # fmt: skip
    else:
        at = (split * num_tokens + token)[:, None] * max_latents + latent[None, :]
        there = tl.arange(0, token.shape[0]) < count
        encode_latents(
            stream, W_enc_rows, b_enc_ptr, row_ptr, hidden_pre_ptr + at, norms_ptr,
            token, there, live, split, per_split, HAS_RESIDUAL, NORMALIZE, PRECISION,
            BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=STEP_NUMBERS)  # type: ignore[untyped-decorator, unused-ignore]
def encode_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    slot_of_token_ptr,
    plan_ptr,
    mask_latents_ptr,
    mask_len_ptr,
    W_enc_rows_ptr,
    b_enc_ptr,
    edited_tokens_ptr,
    hidden_pre_ptr,
    norms_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    num_tokens,
    max_tokens,
    max_latents,
    num_blocks,
    num_splits,
    d_model,
    HAS_PLAN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALONE: tl.constexpr,
    ALONE_D: tl.constexpr,
):
    """hidden_pre[split, token, j] = this split's part of sae_in · W_enc_j + b_enc_j."""
    num_tiles, num_blocks, num_splits = work_of(
        plan_ptr, num_tokens, num_blocks, num_splits, HAS_PLAN
    )
    stream = Stream(
        hidden_states_ptr, residual_ptr, hidden_states_stride, residual_stride, d_model
    )
    per_split = tl.cdiv(tl.cdiv(d_model, num_splits), BLOCK_D) * BLOCK_D
    num_items = num_tiles * num_blocks * num_splits
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        split = item % num_splits
        start = (item // num_splits) % num_blocks * BLOCK_LATENTS
        slot, token, count, first, num_latents = tile_of(
            plan_ptr, slot_of_token_ptr, mask_len_ptr,
            item // (num_splits * num_blocks), max_tokens, HAS_PLAN, BLOCK_TOKENS,
        )  # fmt: skip
        if start < num_latents:
            if (start == 0) & (split == 0):
                # Relaxed: nothing waits for what is counted.
                tl.atomic_add(edited_tokens_ptr + slot, count, sem="relaxed")
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            row_ptr = mask_latents_ptr + slot * max_latents + latent
            W_enc = Rows(W_enc_rows_ptr, W_enc_rows_stride)
            encode_item(
                stream, W_enc, b_enc_ptr, row_ptr, hidden_pre_ptr, norms_ptr, token,
                count, first, latent, live, split, per_split, num_tokens, max_latents,
                HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_D, ALONE, ALONE_D,
            )  # fmt: skip


class Encoded(NamedTuple):
    """A tile's tokens, what was encoded for them, and what its mask does about it."""

    edits: Any
    hidden_pre_ptr: Any
    norms_ptr: Any
    ranks_ptr: Any
    slot: Any
    token: Any
    there: Any
    num_latents: Any
    num_splits: Any
    num_tokens: Any
    max_latents: Any


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def coefficients_of(encoded, latent, NORMALIZE: tl.constexpr, TOPK: tl.constexpr):  # type: ignore[no-untyped-def]
    """coefficient_j = [pre_j > gate_j][rank_j < TOPK] out (scale_j pre_j + shift_j)."""
    token, there = encoded.token, encoded.there
    live = latent < encoded.num_latents
    inside = there[:, None] & live[None, :]
    at = token[:, None] * encoded.max_latents + latent[None, :]
    hidden_pre = tl.zeros((token.shape[0], latent.shape[0]), dtype=tl.float32)
    for split in range(0, encoded.num_splits):
        part = at + split * encoded.num_tokens * encoded.max_latents
        hidden_pre += tl.load(encoded.hidden_pre_ptr + part, mask=inside, other=0.0)
    entry = encoded.slot * encoded.max_latents + latent
    gate, scale, shift = edit_of(encoded.edits, entry, live)
    change = scale[None, :] * hidden_pre + shift[None, :]
    if NORMALIZE != 0:
        out = tl.load(encoded.norms_ptr + token, mask=there, other=0.0)
        change = change * out[:, None]
    fires = inside & (hidden_pre > gate[None, :])
    if TOPK > 0:
        fires = fires & (tl.load(encoded.ranks_ptr + at, mask=inside, other=0) < TOPK)
    return tl.where(fires, change, 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def count_firing(coefficient):  # type: ignore[no-untyped-def]
    """Return how many of a block's coefficients are not zero."""
    return tl.sum(tl.sum((coefficient != 0.0).to(tl.int32), axis=0), axis=0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def decode_tile(  # type: ignore[no-untyped-def]
    encoded,
    latent,
    row_ptr,
    hidden_states,
    W_dec_rows,
    first_d,
    last_d,
    d_model,
    NORMALIZE: tl.constexpr,
    TOPK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add what a tile's mask changes over d in [first_d, last_d).

    Coefficients of the first block of latents, mostly the only one, are kept; those of
    others are computed again for each block of d.
    """
    coefficient = coefficients_of(encoded, latent, NORMALIZE, TOPK)
    fired = count_firing(coefficient)
    for start in range(latent.shape[0], encoded.num_latents, latent.shape[0]):
        fired += count_firing(coefficients_of(encoded, start + latent, NORMALIZE, TOPK))
    # Usually no latent fires, and the tile is done.
    last_d = tl.where(fired > 0, last_d, first_d)
    for d_start in range(first_d, last_d, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        change = tl.zeros((coefficient.shape[0], BLOCK_D), dtype=tl.float32)
        change = decode_rows(
            W_dec_rows, row_ptr, coefficient, d, d_model, change, PRECISION
        )
        for start in range(latent.shape[0], encoded.num_latents, latent.shape[0]):
            more = coefficients_of(encoded, start + latent, NORMALIZE, TOPK)
            if count_firing(more) > 0:
                change = decode_rows(
                    W_dec_rows, row_ptr + start, more, d, d_model, change, PRECISION
                )
        add_change(hidden_states, encoded.token, encoded.there, d, d_model, change)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def parts_of(num_tiles, d_model, TARGET_ITEMS: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return into how many parts d_model is cut for decoding, and what each takes.

    Few parts, so that a tile's coefficients are not computed often.
    """
    parts = tl.minimum(
        TARGET_ITEMS // tl.maximum(num_tiles, 1), tl.cdiv(d_model, BLOCK_D)
    )
    parts = tl.maximum(parts, 1)
    return parts, tl.cdiv(tl.cdiv(d_model, parts), BLOCK_D) * BLOCK_D


@triton.jit(do_not_specialize=STEP_NUMBERS)  # type: ignore[untyped-decorator, unused-ignore]
def decode_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    slot_of_token_ptr,
    plan_ptr,
    mask_latents_ptr,
    mask_scale_ptr,
    mask_shift_ptr,
    mask_gate_ptr,
    mask_len_ptr,
    W_dec_rows_ptr,
    hidden_pre_ptr,
    norms_ptr,
    ranks_ptr,
    hidden_states_stride,
    W_dec_rows_stride,
    num_tokens,
    max_tokens,
    max_latents,
    num_splits,
    d_model,
    HAS_PLAN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TOPK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALONE_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    TARGET_ITEMS: tl.constexpr,
):
    """hidden_states += sum_j coefficient_j * W_dec_rows[j], rounded once."""
    num_tiles, _, num_splits = work_of(plan_ptr, num_tokens, 1, num_splits, HAS_PLAN)
    hidden_states = Rows(hidden_states_ptr, hidden_states_stride)
    W_dec_rows = Rows(W_dec_rows_ptr, W_dec_rows_stride)
    parts, per_part = parts_of(num_tiles, d_model, TARGET_ITEMS, BLOCK_D)
    for item in range(tl.program_id(0), num_tiles * parts, tl.num_programs(0)):
        slot, token, count, first, num_latents = tile_of(
            plan_ptr, slot_of_token_ptr, mask_len_ptr, item // parts, max_tokens,
            HAS_PLAN, BLOCK_TOKENS,
        )  # fmt: skip
        encoded = Encoded(
            Edits(mask_scale_ptr, mask_shift_ptr, mask_gate_ptr), hidden_pre_ptr,
            norms_ptr, ranks_ptr, slot, token, tl.arange(0, BLOCK_TOKENS) < count,
            num_latents, num_splits, num_tokens, max_latents,
        )  # fmt: skip
        latent = tl.arange(0, BLOCK_LATENTS)
        first_d = item % parts * per_part
        last_d = tl.minimum(first_d + per_part, d_model)
        row_ptr = mask_latents_ptr + slot * max_latents + latent
        if (TOPK == 0) and (count == 1):
            decode_token(
                encoded, first, row_ptr, latent, hidden_states, W_dec_rows, first_d,
                last_d, NORMALIZE, MAX_SPLITS, ALONE_D,
            )  # fmt: skip
        else:
            decode_tile(
                encoded, latent, row_ptr, hidden_states, W_dec_rows, first_d, last_d,
                d_model, NORMALIZE, TOPK, PRECISION, BLOCK_D,
            )  # fmt: skip
