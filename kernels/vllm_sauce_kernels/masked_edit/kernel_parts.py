# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: a tile's tokens, their activations, products."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

STEP_NUMBERS = ("num_tokens", "max_tokens", "num_splits")
"""Arguments that differ from step to step: a kernel compiled anew for some of their
values would be compiled while requests wait."""


class Stream(NamedTuple):
    """What is read at a site, as kernels hand it on."""

    hidden_states_ptr: Any
    residual_ptr: Any
    hidden_states_stride: Any
    residual_stride: Any
    d_model: Any


class Rows(NamedTuple):
    """Rows of a matrix."""

    ptr: Any
    stride: Any


class Edits(NamedTuple):
    """What masks do to their latents."""

    scale_ptr: Any
    shift_ptr: Any
    gate_ptr: Any


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def tile_of(  # type: ignore[no-untyped-def]
    plan_ptr,
    slot_of_token_ptr,
    mask_len_ptr,
    tile,
    max_tokens,
    HAS_PLAN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Return a tile's slot, tokens [BLOCK_TOKENS], their number, the first, latents.

    Without a plan each token is a tile of its own. No latents: there is nothing to do.
    """
    lane = tl.arange(0, BLOCK_TOKENS)
    if HAS_PLAN:
        # Layout: plan.py.
        entry = plan_ptr + 4 + max_tokens + 3 * tile
        slot = tl.load(entry)
        count = tl.load(entry + 2)
        order = plan_ptr + 4 + tl.load(entry + 1)
        token = tl.load(order + lane, mask=lane < count, other=0)
        first = tl.load(order, mask=count > 0, other=0)
    else:
        slot = tl.load(slot_of_token_ptr + tile)
        count = 1
        token = tile + 0 * lane
        first = tile
    slot = slot.to(tl.int64)
    num_latents = tl.load(mask_len_ptr + slot, mask=(slot >= 0) & (count > 0), other=0)
    return slot, token.to(tl.int64), count, first.to(tl.int64), num_latents


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def load_input(stream, token, there, d, HAS_RESIDUAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """x = float32(hidden_states) + float32(residual), zero outside."""
    inside = there[:, None] & (d < stream.d_model)[None, :]
    at = token[:, None] * stream.hidden_states_stride + d[None, :]
    x = tl.load(stream.hidden_states_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = token[:, None] * stream.residual_stride + d[None, :]
        x += tl.load(stream.residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def token_norms(  # type: ignore[no-untyped-def]
    stream,
    token,
    there,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return mean, divisor and out of each token: sae_in = (x - mean) / divisor.

    All are zero, and not to be used, where nothing is normalised.
    """
    mean = 0.0 * token.to(tl.float32)
    divisor, out = mean, mean
    d_model = stream.d_model
    if NORMALIZE == 1:
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            mean += tl.sum(load_input(stream, token, there, d, HAS_RESIDUAL), axis=1)
        mean = mean / d_model
    if NORMALIZE != 0:
        square = mean * 0.0
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            x = load_input(stream, token, there, d, HAS_RESIDUAL)
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

    Tensor cores would round a. "bf16" and "tf32" multiply its upper and lower half, so
    that what is lost is below 2^-16 and 2^-21 of a; a float16 b is exact in tf32.
    """
    if PRECISION == "bf16":
        b = b.to(tl.bfloat16)
        upper = a.to(tl.bfloat16)
        lower = (a - upper.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(upper, b, total)
        total = tl.dot(lower, b, total)
    elif PRECISION == "tf32":
        b = b.to(tl.float32)
        upper = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        total = tl.dot(upper, b, total, input_precision="tf32")
        total = tl.dot(a - upper, b, total, input_precision="tf32")
    else:
        total = tl.dot(a, b.to(tl.float32), total, input_precision="ieee")
    return total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_rows(  # type: ignore[no-untyped-def]
    stream,
    W_enc_rows,
    token,
    there,
    row,
    live,
    mean,
    divisor,
    first_d,
    last_d,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return sae_in @ W_enc_rows[row].T over d in [first_d, last_d)."""
    total = tl.zeros((token.shape[0], row.shape[0]), dtype=tl.float32)
    for d_start in range(first_d, last_d, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        x = load_input(stream, token, there, d, HAS_RESIDUAL)
        if NORMALIZE != 0:
            x = (x - mean[:, None]) / divisor[:, None]
            x = tl.where(there[:, None] & (d < stream.d_model)[None, :], x, 0.0)
        w_enc = tl.load(
            W_enc_rows.ptr + row[:, None] * W_enc_rows.stride + d[None, :],
            mask=live[:, None] & (d < stream.d_model)[None, :],
            other=0.0,
        )
        total = product(x, tl.trans(w_enc), total, PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def edit_of(edits, entry, live):  # type: ignore[no-untyped-def]
    """Return gate, scale and shift of masks' entries; nothing fires beyond a mask."""
    gate = tl.load(edits.gate_ptr + entry, mask=live, other=float("inf"))
    scale = tl.load(edits.scale_ptr + entry, mask=live, other=0.0)
    shift = tl.load(edits.shift_ptr + entry, mask=live, other=0.0)
    return gate, scale, shift


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def decode_rows(  # type: ignore[no-untyped-def]
    W_dec_rows,
    row_ptr,
    coefficient,
    d,
    d_model,
    change,
    PRECISION: tl.constexpr,
):
    """Return change + coefficient @ W_dec_rows[row]; silent rows are not loaded."""
    fires = tl.sum((coefficient != 0.0).to(tl.int32), axis=0) > 0
    row = tl.load(row_ptr, mask=fires, other=0).to(tl.int64)
    w_dec = tl.load(
        W_dec_rows.ptr + row[:, None] * W_dec_rows.stride + d[None, :],
        mask=fires[:, None] & (d < d_model)[None, :],
        other=0.0,
    )
    return product(coefficient, w_dec, change, PRECISION)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def add_change(hidden_states, token, there, d, d_model, change):  # type: ignore[no-untyped-def]
    """hidden_states += change, rounded once."""
    at = hidden_states.ptr + token[:, None] * hidden_states.stride + d[None, :]
    inside = there[:, None] & (d < d_model)[None, :]
    edited = tl.load(at, mask=inside, other=0.0).to(tl.float32) + change
    tl.store(at, edited.to(hidden_states.ptr.dtype.element_ty), mask=inside)
