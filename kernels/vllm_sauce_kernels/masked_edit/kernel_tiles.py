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
    add_change,
    decode_rows,
    edit_of,
    encode_tile,
    tile_of,
)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def work_of(batch, num_blocks, num_splits, HAS_UNION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the numbers of tiles, blocks of latents, and splits of d_model."""
    num_tiles = batch.num_tokens
    if batch.plan_ptr is not None:
        num_tiles = tl.load(batch.plan_ptr + 1)
        num_blocks = tl.load(batch.plan_ptr + 2)
        # What the scratch has room for is not the plan's to exceed.
        num_splits = tl.minimum(tl.load(batch.plan_ptr + 3), num_splits)
        num_splits = tl.maximum(num_splits, 1)
        num_blocks = tl.maximum(num_blocks, 1)
        if HAS_UNION:
            # Only a launch that runs the union form may leave the work to it.
            num_tiles = tl.where(tl.load(batch.plan_ptr) == 1, 0, num_tiles)
    return num_tiles, num_blocks, num_splits


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_kernel(  # type: ignore[no-untyped-def]
    stream,
    batch,
    masks,
    W_enc_rows,
    b_enc_ptr,
    edited_tokens_ptr,
    hidden_pre_ptr,
    norms_ptr,
    num_blocks,
    num_splits,
    HAS_UNION: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_pre[split, token, j] = this split's part of sae_in · W_enc_j + b_enc_j."""
    num_tiles, num_blocks, num_splits = work_of(
        batch, num_blocks, num_splits, HAS_UNION
    )
    per_split = tl.cdiv(tl.cdiv(stream.d_model, num_splits), BLOCK_D) * BLOCK_D
    num_items = num_tiles * SUBTILES * num_blocks * num_splits
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        split = item % num_splits
        start = (item // num_splits) % num_blocks * BLOCK_LATENTS
        slot, token, there, num_latents = tile_of(
            batch, masks, item // (num_splits * num_blocks), SUBTILES, BLOCK_TOKENS
        )
        if start < num_latents:
            if (start == 0) & (split == 0):
                count = tl.sum(there.to(tl.int32), axis=0)
                tl.atomic_add(edited_tokens_ptr + slot, count.to(tl.int64))
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            first_d = split * per_split
            hidden_pre = encode_tile(
                stream, W_enc_rows, b_enc_ptr,
                masks.latents_ptr + slot * masks.max_latents + latent, norms_ptr,
                token, there, live, first_d,
                tl.minimum(first_d + per_split, stream.d_model), NORMALIZE, PRECISION,
                BLOCK_D,
            )  # fmt: skip
            place = split * batch.num_tokens + token
            at = place[:, None] * masks.max_latents + latent[None, :]
            inside = there[:, None] & live[None, :]
            tl.store(hidden_pre_ptr + at, hidden_pre, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def coefficients_of(  # type: ignore[no-untyped-def]
    masks,
    hidden_pre_ptr,
    norms_ptr,
    ranks_ptr,
    slot,
    token,
    there,
    latent,
    live,
    num_splits,
    num_tokens,
    NORMALIZE: tl.constexpr,
    TOPK: tl.constexpr,
):
    """coefficient_j = [pre_j > gate_j][rank_j < TOPK] out (scale_j pre_j + shift_j)."""
    inside = there[:, None] & live[None, :]
    hidden_pre = tl.zeros((token.shape[0], latent.shape[0]), dtype=tl.float32)
    for split in range(0, num_splits):
        place = split * num_tokens + token
        part = place[:, None] * masks.max_latents + latent[None, :]
        hidden_pre += tl.load(hidden_pre_ptr + part, mask=inside, other=0.0)
    gate, scale, shift = edit_of(masks, slot * masks.max_latents + latent, live)
    change = scale[None, :] * hidden_pre + shift[None, :]
    if NORMALIZE != 0:
        change = change * tl.load(norms_ptr + token, mask=there, other=0.0)[:, None]
    fires = inside & (hidden_pre > gate[None, :])
    if TOPK > 0:
        at = token[:, None] * masks.max_latents + latent[None, :]
        fires = fires & (tl.load(ranks_ptr + at, mask=inside, other=0) < TOPK)
    return tl.where(fires, change, 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def decode_kernel(  # type: ignore[no-untyped-def]
    stream,
    batch,
    masks,
    W_dec_rows,
    hidden_pre_ptr,
    norms_ptr,
    ranks_ptr,
    num_splits,
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
    num_tiles, num_blocks, num_splits = work_of(batch, 1, num_splits, HAS_UNION)
    d_blocks = tl.cdiv(stream.d_model, BLOCK_D)
    num_items = num_tiles * SUBTILES * d_blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        slot, token, there, num_latents = tile_of(
            batch, masks, item // d_blocks, SUBTILES, BLOCK_TOKENS
        )
        d = item % d_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
        change = tl.zeros((BLOCK_TOKENS, BLOCK_D), dtype=tl.float32)
        fired = 0
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            coefficient = coefficients_of(
                masks, hidden_pre_ptr, norms_ptr, ranks_ptr, slot, token, there,
                latent, live, num_splits, batch.num_tokens, NORMALIZE, TOPK,
            )  # fmt: skip
            row_ptr = masks.latents_ptr + slot * masks.max_latents + latent
            change, fired = decode_rows(
                W_dec_rows, row_ptr, live, coefficient, d, stream.d_model, change,
                fired, PRECISION,
            )  # fmt: skip
        add_change(stream, token, there, d, change, fired)
