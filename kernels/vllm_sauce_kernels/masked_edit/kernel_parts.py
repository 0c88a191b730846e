# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: a tile's tokens, their activations, products."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def tile_of(  # type: ignore[no-untyped-def]
    plan_ptr,
    slot_of_token_ptr,
    tile,
    max_tokens,
    HAS_PLAN: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Return a tile's slot, its tokens [BLOCK_TOKENS] and which of them exist.

    Without a plan each token is a tile of its own.
    """
    lane = tl.arange(0, BLOCK_TOKENS)
    if HAS_PLAN:
        # Layout: plan.py.
        entry = plan_ptr + 8 + max_tokens + 3 * (tile // SUBTILES)
        slot = tl.load(entry)
        lane += (tile % SUBTILES) * BLOCK_TOKENS
        there = lane < tl.load(entry + 2)
        order = plan_ptr + 8 + tl.load(entry + 1)
        token = tl.load(order + lane, mask=there, other=0)
    else:
        slot = tl.load(slot_of_token_ptr + tile)
        there = lane < 1
        token = tile + 0 * lane
    return slot.to(tl.int64), token.to(tl.int64), there


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def load_input(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    token,
    there,
    d,
    d_model,
    hidden_states_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
):
    """x = float32(hidden_states) + float32(residual), zero outside."""
    inside = there[:, None] & (d < d_model)[None, :]
    at = hidden_states_ptr + token[:, None] * hidden_states_stride + d[None, :]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = residual_ptr + token[:, None] * residual_stride + d[None, :]
        x += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def token_norms(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    token,
    there,
    d_model,
    hidden_states_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return mean, divisor and out of each token: sae_in = (x - mean) / divisor."""
    mean = tl.sum(there[:, None].to(tl.float32), axis=1) * 0.0
    if NORMALIZE == 1:
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            x = load_input(
                hidden_states_ptr, residual_ptr, token, there, d, d_model,
                hidden_states_stride, residual_stride, HAS_RESIDUAL,
            )  # fmt: skip
            mean += tl.sum(x, axis=1)
        mean = mean / d_model
    square = mean * 0.0
    for d_start in range(0, d_model, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        x = load_input(
            hidden_states_ptr, residual_ptr, token, there, d, d_model,
            hidden_states_stride, residual_stride, HAS_RESIDUAL,
        )  # fmt: skip
        centred = tl.where((d < d_model)[None, :], x - mean[:, None], 0.0)
        square += tl.sum(centred * centred, axis=1)
    if NORMALIZE == 1:
        out = tl.sqrt(square / (d_model - 1))
        divisor = out + 1e-5
    else:
        out = tl.sqrt(square / d_model)
        divisor = out
    return mean, divisor, out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def product(a, b, total, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a @ b in float32; a is float32, b as the pool holds it.

    bfloat16 tensor cores would round a. "split" multiplies its upper and lower half, so
    that what is lost is below 2^-16 of a.
    """
    if PRECISION == "split":
        b = b.to(tl.bfloat16)
        upper = a.to(tl.bfloat16)
        lower = (a - upper.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(upper, b, total)
        total = tl.dot(lower, b, total)
    else:
        total = tl.dot(a, b.to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_rows(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    W_enc_rows_ptr,
    token,
    there,
    row,
    live,
    mean,
    divisor,
    first_d,
    last_d,
    d_model,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return sae_in @ W_enc_rows[row].T over d in [first_d, last_d)."""
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), dtype=tl.float32)
    for d_start in range(first_d, last_d, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        x = load_input(
            hidden_states_ptr, residual_ptr, token, there, d, d_model,
            hidden_states_stride, residual_stride, HAS_RESIDUAL,
        )  # fmt: skip
        if NORMALIZE != 0:
            x = (x - mean[:, None]) / divisor[:, None]
            x = tl.where(there[:, None] & (d < d_model)[None, :], x, 0.0)
        w_enc = tl.load(
            W_enc_rows_ptr + row[:, None] * W_enc_rows_stride + d[None, :],
            mask=live[:, None] & (d < d_model)[None, :],
            other=0.0,
        )
        total = product(x, tl.trans(w_enc), total, PRECISION)
    return total
