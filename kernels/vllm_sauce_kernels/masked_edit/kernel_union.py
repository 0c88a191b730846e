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
    Edits,
    Rows,
    Stream,
    add_change,
    decode_rows,
    edit_of,
    encode_rows,
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
    stream = Stream(
        hidden_states_ptr, residual_ptr, hidden_states_stride, residual_stride, d_model
    )
    num_union = tl.load(plan_ptr + 5)
    blocks = tl.cdiv(num_union, BLOCK_ROWS)
    num_items = tl.cdiv(tl.load(plan_ptr + 4), BLOCK_TOKENS) * blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        place, token, there = edited_of(
            plan_ptr, item // blocks * BLOCK_TOKENS, BLOCK_TOKENS
        )
        start = item % blocks * BLOCK_ROWS
        mean, divisor, out = token_norms(
            stream, token, there, HAS_RESIDUAL, NORMALIZE, BLOCK_D
        )
        if NORMALIZE != 0:
            tl.store(norms_ptr + token, out, mask=there)
        column = start + tl.arange(0, BLOCK_ROWS)
        live = column < num_union
        row = tl.load(plan_ptr + union_at + column, mask=live, other=0).to(tl.int64)
        hidden_pre = encode_rows(
            stream, Rows(W_enc_rows_ptr, W_enc_rows_stride), token, there, row, live,
            mean, divisor, 0, d_model, HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_D,
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
    edits = Edits(mask_scale_ptr, mask_shift_ptr, mask_gate_ptr)
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
            gate, scale, shift = edit_of(edits, entry, live)
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
    hidden_states = Rows(hidden_states_ptr, hidden_states_stride)
    W_dec_rows = Rows(W_dec_rows_ptr, W_dec_rows_stride)
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
            change, fired = decode_rows(
                W_dec_rows, plan_ptr + union_at + column, live, coefficient, d, d_model,
                change, fired, PRECISION,
            )  # fmt: skip
        add_change(hidden_states, token, there, d, d_model, change, fired)
