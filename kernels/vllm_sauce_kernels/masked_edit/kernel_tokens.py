# SPDX-License-Identifier: Apache-2.0
"""A tile of one token, as most are where each request has a mask of its own.

Products on tensor cores would be fifteen rows of sixteen of nothing, and wait for each
other at barriers. Here only the masked rows are read, and nothing waits but for them.
So a token's last bits depend on whether a batchmate shares its mask.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import edit_of, token_norms


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def load_token(stream, token, d, HAS_RESIDUAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """x = float32(hidden_states) + float32(residual) of one token, zero outside."""
    # Not ``load_input``: a block of one row would give the product its layout, and all
    # rows of the encoder would go through shared memory to have it.
    inside = d < stream.d_model
    at = token * stream.hidden_states_stride + d
    x = tl.load(stream.hidden_states_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = token * stream.residual_stride + d
        x += tl.load(stream.residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def encode_token(  # type: ignore[no-untyped-def]
    stream,
    W_enc_rows,
    b_enc_ptr,
    row_ptr,
    hidden_pre_ptr,
    norms_ptr,
    token,
    live,
    split,
    per_split,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a split's part of a token's pre-activations, and the token's norm."""
    d_model = stream.d_model
    row = tl.load(row_ptr, mask=live, other=0).to(tl.int64)
    mean, divisor = 0.0, 1.0
    if NORMALIZE != 0:
        one = token + tl.arange(0, 1)
        means, divisors, out = token_norms(
            stream, one, one >= 0, HAS_RESIDUAL, NORMALIZE, BLOCK_D
        )
        mean, divisor = tl.sum(means, axis=0), tl.sum(divisors, axis=0)
        tl.store(norms_ptr + one, out)
    hidden_pre = tl.zeros((live.shape[0],), dtype=tl.float32)
    first_d = split * per_split
    last_d = tl.minimum(first_d + per_split, d_model)
    for d_start in range(first_d, last_d, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        w_enc = tl.load(
            W_enc_rows.ptr + row[:, None] * W_enc_rows.stride + d[None, :],
            mask=live[:, None] & (d < last_d)[None, :],
            other=0.0,
        )
        x = load_token(stream, token, d, HAS_RESIDUAL)
        if NORMALIZE != 0:
            x = (x - mean) / divisor
        hidden_pre += tl.sum(x[None, :] * w_enc.to(tl.float32), axis=1)
    if split == 0:
        hidden_pre += tl.load(b_enc_ptr + row, mask=live, other=0.0)
    tl.store(hidden_pre_ptr, hidden_pre, mask=live)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def coefficients_of_token(  # type: ignore[no-untyped-def]
    encoded, token, latent, NORMALIZE: tl.constexpr, MAX_SPLITS: tl.constexpr
):
    """coefficient_j = [pre_j > gate_j] out (scale_j pre_j + shift_j)."""
    live, split = latent < encoded.num_latents, tl.arange(0, MAX_SPLITS)
    at = (split * encoded.num_tokens + token) * encoded.max_latents
    # All parts are on their way at once.
    parts = tl.load(
        encoded.hidden_pre_ptr + at[:, None] + latent[None, :],
        mask=(split < encoded.num_splits)[:, None] & live[None, :],
        other=0.0,
    )
    hidden_pre = tl.sum(parts, axis=0)
    entry = encoded.slot * encoded.max_latents + latent
    gate, scale, shift = edit_of(encoded.edits, entry, live)
    change = scale * hidden_pre + shift
    if NORMALIZE != 0:
        change = change * tl.load(encoded.norms_ptr + token)
    return tl.where(live & (hidden_pre > gate), change, 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def change_of(coefficient, W_dec_rows, row_ptr, d, last_d):  # type: ignore[no-untyped-def]
    """Return coefficient @ W_dec_rows[row], of d < last_d and of rows that fire."""
    fires = coefficient != 0.0
    row = tl.load(row_ptr, mask=fires, other=0).to(tl.int64)
    w_dec = tl.load(
        W_dec_rows.ptr + row[:, None] * W_dec_rows.stride + d[None, :],
        mask=fires[:, None] & (d < last_d)[None, :],
        other=0.0,
    )
    return tl.sum(coefficient[:, None] * w_dec.to(tl.float32), axis=0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def decode_token(  # type: ignore[no-untyped-def]
    encoded,
    token,
    row_ptr,
    latent,
    hidden_states,
    W_dec_rows,
    first_d,
    last_d,
    NORMALIZE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add what a token's mask changes over d in [first_d, last_d).

    As ``decode_tile``: what is beyond the first block of latents is computed again for
    each block of d.
    """
    coefficient = coefficients_of_token(encoded, token, latent, NORMALIZE, MAX_SPLITS)
    fired = tl.sum((coefficient != 0.0).to(tl.int32), axis=0)
    for start in range(latent.shape[0], encoded.num_latents, latent.shape[0]):
        more = coefficients_of_token(
            encoded, token, start + latent, NORMALIZE, MAX_SPLITS
        )
        fired += tl.sum((more != 0.0).to(tl.int32), axis=0)
    # Usually no latent fires, and the token is done.
    last_d = tl.where(fired > 0, last_d, first_d)
    for d_start in range(first_d, last_d, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        at = hidden_states.ptr + token * hidden_states.stride + d
        # On its way while the rows are.
        edited = tl.load(at, mask=d < last_d, other=0.0).to(tl.float32)
        edited += change_of(coefficient, W_dec_rows, row_ptr, d, last_d)
        for start in range(latent.shape[0], encoded.num_latents, latent.shape[0]):
            more = coefficients_of_token(
                encoded, token, start + latent, NORMALIZE, MAX_SPLITS
            )
            edited += change_of(more, W_dec_rows, row_ptr + start, d, last_d)
        tl.store(at, edited.to(hidden_states.ptr.dtype.element_ty), mask=d < last_d)
