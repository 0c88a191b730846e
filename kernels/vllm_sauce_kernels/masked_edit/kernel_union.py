# SPDX-License-Identifier: Apache-2.0
"""The union form: many masks that share latents, as two dense products.

The union of the latents in use is encoded for all edited tokens at once, each token
keeps what its own mask says of it, and the coefficients are decoded in one product.
Rows are read once for a tile of tokens, whatever the mix of masks in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import (
    add_change,
    decode_rows,
    edit_of,
    encode_tile,
)


class Union(NamedTuple):
    """The rows in use, and what is computed of them for the edited tokens."""

    plan_ptr: Any
    at: Any
    """Where the plan lists the rows."""
    num_pool: Any
    hidden_pre_ptr: Any
    coefficients_ptr: Any


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def edited_of(plan_ptr, start, BLOCK_TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return places among the edited tokens, the tokens there, and which exist."""
    place = start + tl.arange(0, BLOCK_TOKENS).to(tl.int64)
    there = place < tl.load(plan_ptr + 4)
    token = tl.load(plan_ptr + 8 + place, mask=there, other=0).to(tl.int64)
    return place, token, there


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_encode_kernel(  # type: ignore[no-untyped-def]
    stream,
    union,
    W_enc_rows,
    b_enc_ptr,
    norms_ptr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_pre[place, u] = sae_in · W_enc_rows[union_u] + b_enc; coefficients = 0."""
    if tl.load(union.plan_ptr) != 1:
        return
    num_union = tl.load(union.plan_ptr + 5)
    blocks = tl.cdiv(num_union, BLOCK_ROWS)
    num_items = tl.cdiv(tl.load(union.plan_ptr + 4), BLOCK_TOKENS) * blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        place, token, there = edited_of(
            union.plan_ptr, item // blocks * BLOCK_TOKENS, BLOCK_TOKENS
        )
        column = item % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        live = column < num_union
        hidden_pre = encode_tile(
            stream, W_enc_rows, b_enc_ptr, union.plan_ptr + union.at + column,
            norms_ptr, token, there, live, 0, stream.d_model, NORMALIZE, PRECISION,
            BLOCK_D,
        )  # fmt: skip
        at = place[:, None] * union.num_pool + column[None, :]
        inside = there[:, None] & live[None, :]
        tl.store(union.hidden_pre_ptr + at, hidden_pre, mask=inside)
        zero = 0.0 * there[:, None].to(tl.float32)
        tl.store(union.coefficients_ptr + at, zero, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_clamp_kernel(  # type: ignore[no-untyped-def]
    union,
    slot_of_token_ptr,
    masks,
    edited_tokens_ptr,
    norms_ptr,
    NORMALIZE: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
):
    """coefficients[place, u] = what the token's mask makes of latent u."""
    if tl.load(union.plan_ptr) != 1:
        return
    num_edited = tl.load(union.plan_ptr + 4)
    for place in range(tl.program_id(0), num_edited, tl.num_programs(0)):
        token = tl.load(union.plan_ptr + 8 + place).to(tl.int64)
        slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
        num_latents = tl.load(masks.len_ptr + slot)
        tl.atomic_add(edited_tokens_ptr + slot, 1)
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            entry = slot * masks.max_latents + latent
            row = tl.load(masks.latents_ptr + entry, mask=live, other=0)
            columns_ptr = union.plan_ptr + union.at + union.num_pool
            at = place * union.num_pool + tl.load(columns_ptr + row, mask=live, other=0)
            hidden_pre = tl.load(union.hidden_pre_ptr + at, mask=live, other=0.0)
            gate, scale, shift = edit_of(masks, entry, live)
            change = scale * hidden_pre + shift
            if NORMALIZE != 0:
                change = change * tl.load(norms_ptr + token)
            # Added: a mask may name a latent twice.
            fires = live & (hidden_pre > gate)
            tl.atomic_add(union.coefficients_ptr + at, change, mask=fires)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def union_decode_kernel(  # type: ignore[no-untyped-def]
    stream,
    union,
    W_dec_rows,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_states += coefficients @ W_dec_rows[union], rounded once."""
    if tl.load(union.plan_ptr) != 1:
        return
    num_union = tl.load(union.plan_ptr + 5)
    blocks = tl.cdiv(stream.d_model, BLOCK_D)
    num_items = tl.cdiv(tl.load(union.plan_ptr + 4), BLOCK_TOKENS) * blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        place, token, there = edited_of(
            union.plan_ptr, item // blocks * BLOCK_TOKENS, BLOCK_TOKENS
        )
        d = item % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
        change = tl.zeros((BLOCK_TOKENS, BLOCK_D), dtype=tl.float32)
        fired = 0
        for start in range(0, num_union, BLOCK_ROWS):
            column = start + tl.arange(0, BLOCK_ROWS)
            live = column < num_union
            at = place[:, None] * union.num_pool + column[None, :]
            inside = there[:, None] & live[None, :]
            coefficient = tl.load(union.coefficients_ptr + at, mask=inside, other=0.0)
            change, fired = decode_rows(
                W_dec_rows, union.plan_ptr + union.at + column, live, coefficient, d,
                stream.d_model, change, fired, PRECISION,
            )  # fmt: skip
        add_change(stream, token, there, d, change, fired)
