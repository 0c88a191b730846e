# SPDX-License-Identifier: Apache-2.0
"""The union form: many masks that share latents, as two dense products.

The union of the latents in use is encoded for all edited tokens at once, each token
keeps what its own mask says of it, and the coefficients are decoded in one product.
Rows are read once for a tile of tokens, whatever the mix of masks in it.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import (
    encode_rows,
    product,
    token_norms,
)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def edited_of(plan_ptr, start, BLOCK_TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return places among the edited tokens, the tokens there, and which exist."""
    place = start + tl.arange(0, BLOCK_TOKENS).to(tl.int64)
    there = place < tl.load(plan_ptr + 4)
    token = tl.load(plan_ptr + 8 + place, mask=there, other=0).to(tl.int64)
    return place, token, there


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_encode_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    plan_ptr,
    W_enc_rows_ptr,
    b_enc_ptr,
    hidden_pre_ptr,
    coefficients_ptr,
    norms_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    union_at,
    num_pool,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_pre[place, u] = sae_in · W_enc_rows[union_u] + b_enc; coefficients = 0."""
    if tl.load(plan_ptr) != 1:
        return
    num_union = tl.load(plan_ptr + 5)
    blocks = tl.cdiv(num_union, BLOCK_ROWS)
    num_items = tl.cdiv(tl.load(plan_ptr + 4), BLOCK_TOKENS) * blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        place, token, there = edited_of(
            plan_ptr, item // blocks * BLOCK_TOKENS, BLOCK_TOKENS
        )
        start = item % blocks * BLOCK_ROWS
        mean, divisor = 0.0 * token.to(tl.float32), 0.0 * token.to(tl.float32)
        if NORMALIZE != 0:
            mean, divisor, out = token_norms(
                hidden_states_ptr, residual_ptr, token, there, d_model,
                hidden_states_stride, residual_stride, HAS_RESIDUAL, NORMALIZE, BLOCK_D,
            )  # fmt: skip
            tl.store(norms_ptr + token, out, mask=there)
        column = start + tl.arange(0, BLOCK_ROWS)
        live = column < num_union
        row = tl.load(plan_ptr + union_at + column, mask=live, other=0).to(tl.int64)
        hidden_pre = encode_rows(
            hidden_states_ptr, residual_ptr, W_enc_rows_ptr, token, there, row, live,
            mean, divisor, 0, d_model, d_model, hidden_states_stride, residual_stride,
            W_enc_rows_stride, HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_TOKENS,
            BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
        hidden_pre += tl.load(b_enc_ptr + row, mask=live, other=0.0)[None, :]
        at = place[:, None] * num_pool + column[None, :]
        inside = there[:, None] & live[None, :]
        tl.store(hidden_pre_ptr + at, hidden_pre, mask=inside)
        tl.store(
            coefficients_ptr + at, 0.0 * there[:, None].to(tl.float32), mask=inside
        )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_clamp_kernel(  # type: ignore[no-untyped-def]
    slot_of_token_ptr,
    plan_ptr,
    mask_latents_ptr,
    mask_scale_ptr,
    mask_shift_ptr,
    mask_gate_ptr,
    mask_len_ptr,
    edited_tokens_ptr,
    hidden_pre_ptr,
    coefficients_ptr,
    norms_ptr,
    union_at,
    max_latents,
    num_pool,
    NORMALIZE: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
):
    """coefficients[place, u] = what the token's mask makes of latent u."""
    if tl.load(plan_ptr) != 1:
        return
    for place in range(tl.program_id(0), tl.load(plan_ptr + 4), tl.num_programs(0)):
        token = tl.load(plan_ptr + 8 + place).to(tl.int64)
        slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
        num_latents = tl.load(mask_len_ptr + slot)
        tl.atomic_add(edited_tokens_ptr + slot, 1)
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            entry = slot * max_latents + latent
            row = tl.load(mask_latents_ptr + entry, mask=live, other=0)
            column = tl.load(plan_ptr + union_at + num_pool + row, mask=live, other=0)
            at = place * num_pool + column
            hidden_pre = tl.load(hidden_pre_ptr + at, mask=live, other=0.0)
            gate = tl.load(mask_gate_ptr + entry, mask=live, other=float("inf"))
            scale = tl.load(mask_scale_ptr + entry, mask=live, other=0.0)
            shift = tl.load(mask_shift_ptr + entry, mask=live, other=0.0)
            change = scale * hidden_pre + shift
            if NORMALIZE != 0:
                change = change * tl.load(norms_ptr + token)
            # Added: a mask may name a latent twice.
            fires = live & (hidden_pre > gate)
            tl.atomic_add(coefficients_ptr + at, change, mask=fires)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_decode_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    plan_ptr,
    W_dec_rows_ptr,
    coefficients_ptr,
    hidden_states_stride,
    W_dec_rows_stride,
    union_at,
    num_pool,
    d_model,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_states += coefficients @ W_dec_rows[union], rounded once."""
    if tl.load(plan_ptr) != 1:
        return
    num_union = tl.load(plan_ptr + 5)
    blocks = tl.cdiv(d_model, BLOCK_D)
    num_items = tl.cdiv(tl.load(plan_ptr + 4), BLOCK_TOKENS) * blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        place, token, there = edited_of(
            plan_ptr, item // blocks * BLOCK_TOKENS, BLOCK_TOKENS
        )
        d = item % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
        change = tl.zeros((BLOCK_TOKENS, BLOCK_D), dtype=tl.float32)
        fired = 0
        for start in range(0, num_union, BLOCK_ROWS):
            column = start + tl.arange(0, BLOCK_ROWS)
            live = column < num_union
            coefficient = tl.load(
                coefficients_ptr + place[:, None] * num_pool + column[None, :],
                mask=there[:, None] & live[None, :],
                other=0.0,
            )
            fires = tl.sum((coefficient != 0.0).to(tl.int32), axis=0)
            firing = tl.sum(fires, axis=0)
            fired += firing
            if firing > 0:
                row = tl.load(plan_ptr + union_at + column, mask=live, other=0)
                w_dec = tl.load(
                    W_dec_rows_ptr
                    + row.to(tl.int64)[:, None] * W_dec_rows_stride
                    + d[None, :],
                    mask=(fires > 0)[:, None] & (d < d_model)[None, :],
                    other=0.0,
                )
                change = product(coefficient, w_dec, change, PRECISION)
        if fired > 0:
            at = hidden_states_ptr + token[:, None] * hidden_states_stride + d[None, :]
            inside = there[:, None] & (d < d_model)[None, :]
            edited = tl.load(at, mask=inside, other=0.0).to(tl.float32) + change
            tl.store(at, edited.to(hidden_states_ptr.dtype.element_ty), mask=inside)
