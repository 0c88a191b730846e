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

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import (
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


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def work_of(  # type: ignore[no-untyped-def]
    plan_ptr,
    num_tokens,
    num_blocks,
    num_splits,
    HAS_PLAN: tl.constexpr,
    HAS_UNION: tl.constexpr,
):
    """Return the numbers of tiles, blocks of latents, and splits of d_model."""
    num_tiles = num_tokens
    if HAS_PLAN:
        num_tiles = tl.load(plan_ptr + 1)
        num_blocks = tl.load(plan_ptr + 2)
        # What the scratch has room for is not the plan's to exceed.
        num_splits = tl.maximum(tl.minimum(tl.load(plan_ptr + 3), num_splits), 1)
        num_blocks = tl.maximum(num_blocks, 1)
        if HAS_UNION:
            # Only a launch that runs the union form may leave the work to it.
            num_tiles = tl.where(tl.load(plan_ptr) == 1, 0, num_tiles)
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
    HAS_UNION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_pre[split, token, j] = this split's part of sae_in · W_enc_j + b_enc_j."""
    num_tiles, num_blocks, num_splits = work_of(
        plan_ptr, num_tokens, num_blocks, num_splits, HAS_PLAN, HAS_UNION
    )
    stream = Stream(
        hidden_states_ptr, residual_ptr, hidden_states_stride, residual_stride, d_model
    )
    per_split = tl.cdiv(tl.cdiv(d_model, num_splits), BLOCK_D) * BLOCK_D
    num_items = num_tiles * SUBTILES * num_blocks * num_splits
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        split = item % num_splits
        start = (item // num_splits) % num_blocks * BLOCK_LATENTS
        slot, token, there, num_latents = tile_of(
            plan_ptr, slot_of_token_ptr, mask_len_ptr,
            item // (num_splits * num_blocks), max_tokens, HAS_PLAN, SUBTILES,
            BLOCK_TOKENS,
        )  # fmt: skip
        if start < num_latents:
            if (start == 0) & (split == 0):
                count = tl.sum(there.to(tl.int32), axis=0)
                tl.atomic_add(edited_tokens_ptr + slot, count.to(tl.int64))
            latent = start + tl.arange(0, BLOCK_LATENTS)
            at = (split * num_tokens + token)[:, None] * max_latents + latent[None, :]
            encode_latents(
                stream, Rows(W_enc_rows_ptr, W_enc_rows_stride), b_enc_ptr,
                mask_latents_ptr + slot * max_latents + latent, hidden_pre_ptr + at,
                norms_ptr, token, there, latent < num_latents, split, per_split,
                HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_D,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def coefficients_of(  # type: ignore[no-untyped-def]
    edits,
    hidden_pre_ptr,
    norms_ptr,
    ranks_ptr,
    entry,
    token,
    there,
    latent,
    live,
    num_splits,
    num_tokens,
    max_latents,
    NORMALIZE: tl.constexpr,
    TOPK: tl.constexpr,
):
    """coefficient_j = [pre_j > gate_j][rank_j < TOPK] out (scale_j pre_j + shift_j)."""
    inside = there[:, None] & live[None, :]
    hidden_pre = tl.zeros((token.shape[0], latent.shape[0]), dtype=tl.float32)
    for split in range(0, num_splits):
        part = (split * num_tokens + token)[:, None] * max_latents + latent[None, :]
        hidden_pre += tl.load(hidden_pre_ptr + part, mask=inside, other=0.0)
    gate, scale, shift = edit_of(edits, entry, live)
    change = scale[None, :] * hidden_pre + shift[None, :]
    if NORMALIZE != 0:
        change = change * tl.load(norms_ptr + token, mask=there, other=0.0)[:, None]
    fires = inside & (hidden_pre > gate[None, :])
    if TOPK > 0:
        at = token[:, None] * max_latents + latent[None, :]
        fires = fires & (tl.load(ranks_ptr + at, mask=inside, other=0) < TOPK)
    return tl.where(fires, change, 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
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
    HAS_UNION: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TOPK: tl.constexpr,
    PRECISION: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_states += sum_j coefficient_j * W_dec_rows[j], rounded once."""
    num_tiles, num_blocks, num_splits = work_of(
        plan_ptr, num_tokens, 1, num_splits, HAS_PLAN, HAS_UNION
    )
    edits = Edits(mask_scale_ptr, mask_shift_ptr, mask_gate_ptr)
    hidden_states = Rows(hidden_states_ptr, hidden_states_stride)
    d_blocks = tl.cdiv(d_model, BLOCK_D)
    num_items = num_tiles * SUBTILES * d_blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        slot, token, there, num_latents = tile_of(
            plan_ptr, slot_of_token_ptr, mask_len_ptr, item // d_blocks, max_tokens,
            HAS_PLAN, SUBTILES, BLOCK_TOKENS,
        )  # fmt: skip
        d = item % d_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
        change = tl.zeros((BLOCK_TOKENS, BLOCK_D), dtype=tl.float32)
        fired = 0
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            entry = slot * max_latents + latent
            coefficient = coefficients_of(
                edits, hidden_pre_ptr, norms_ptr, ranks_ptr, entry, token, there,
                latent, live, num_splits, num_tokens, max_latents, NORMALIZE, TOPK,
            )  # fmt: skip
            change, fired = decode_rows(
                Rows(W_dec_rows_ptr, W_dec_rows_stride), mask_latents_ptr + entry, live,
                coefficient, d, d_model, change, fired, PRECISION,
            )  # fmt: skip
        add_change(hidden_states, token, there, d, d_model, change, fired)
