# SPDX-License-Identifier: Apache-2.0
"""The op in Triton: two launches, one program a token, so no token sees its batch.

The edit of a latent must not be seen by the next one's pre-activation, so all
coefficients are written to a scratch buffer before the first row is changed. Two
launches order the two halves on every GPU, without a barrier.

TopK adds a launch between them: programs over tokens and tiles of the dictionary count
what ranks before each latent that fires. Tokens where none fires leave at once, and
the scratch stays [num_tokens, max_latents].
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

BLOCK_LATENTS = 16
BLOCK_D = 128
BLOCK_ROWS = 32
"""Rows of the dictionary that a ranking program holds at a time."""
ROWS_PER_PROGRAM = 1024
"""Rows of the dictionary that one ranking program passes."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def load_input(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    token,
    d,
    d_model,
    hidden_states_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
):
    """x = float32(hidden_states) + float32(residual), zero outside."""
    inside = d < d_model
    x = tl.load(
        hidden_states_ptr + token * hidden_states_stride + d, mask=inside, other=0.0
    ).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(
            residual_ptr + token * residual_stride + d, mask=inside, other=0.0
        ).to(tl.float32)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def token_norm(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    token,
    d_model,
    hidden_states_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return mean, divisor and out: sae_in = (x - mean) / divisor."""
    mean = 0.0
    if NORMALIZE == 1:
        total = tl.full((BLOCK_D,), 0.0, tl.float32)
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            total += load_input(
                hidden_states_ptr, residual_ptr, token, d, d_model,
                hidden_states_stride, residual_stride, HAS_RESIDUAL,
            )  # fmt: skip
        mean = tl.sum(total, axis=0) / d_model
    squares = tl.full((BLOCK_D,), 0.0, tl.float32)
    for d_start in range(0, d_model, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        x = load_input(
            hidden_states_ptr, residual_ptr, token, d, d_model,
            hidden_states_stride, residual_stride, HAS_RESIDUAL,
        )  # fmt: skip
        centred = tl.where(d < d_model, x - mean, 0.0)
        squares += centred * centred
    square = tl.sum(squares, axis=0)
    if NORMALIZE == 1:
        out = tl.sqrt(square / (d_model - 1))
        divisor = out + 1e-5
    else:
        out = tl.sqrt(square / d_model)
        divisor = out
    return mean, divisor, out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def coefficients_kernel(  # type: ignore[no-untyped-def]
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
    edited_tokens_ptr,
    coefficients_ptr,
    hidden_pre_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    max_latents,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """coefficient_j = [pre_j > gate_j] * out * (scale_j * pre_j + shift_j)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
    if slot < 0:
        return
    num_latents = tl.load(mask_len_ptr + slot)
    if num_latents <= 0:
        return
    tl.atomic_add(edited_tokens_ptr + slot, 1)
    if NORMALIZE != 0:
        mean, divisor, out = token_norm(
            hidden_states_ptr, residual_ptr, token, d_model, hidden_states_stride,
            residual_stride, HAS_RESIDUAL, NORMALIZE, BLOCK_D,
        )  # fmt: skip
    for start in range(0, num_latents, BLOCK_LATENTS):
        latent = start + tl.arange(0, BLOCK_LATENTS)
        live = latent < num_latents
        entry = slot * max_latents + latent
        # Entries beyond mask_len are garbage, also as row numbers: never loaded.
        row = tl.load(mask_latents_ptr + entry, mask=live, other=0).to(tl.int64)
        hidden_pre = tl.load(b_enc_ptr + row, mask=live, other=0.0).to(tl.float32)
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            inside = d < d_model
            x = load_input(
                hidden_states_ptr, residual_ptr, token, d, d_model,
                hidden_states_stride, residual_stride, HAS_RESIDUAL,
            )  # fmt: skip
            if NORMALIZE != 0:
                x = tl.where(inside, (x - mean) / divisor, 0.0)
            w_enc = tl.load(
                W_enc_rows_ptr + row[:, None] * W_enc_rows_stride + d[None, :],
                mask=live[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            hidden_pre += tl.sum(w_enc * x[None, :], axis=1)
        gate = tl.load(mask_gate_ptr + entry, mask=live, other=float("inf"))
        scale = tl.load(mask_scale_ptr + entry, mask=live, other=0.0)
        shift = tl.load(mask_shift_ptr + entry, mask=live, other=0.0)
        change = scale * hidden_pre + shift
        if NORMALIZE != 0:
            change = change * out
        coefficient = tl.where(hidden_pre > gate, change, 0.0)
        at = token * max_latents + latent
        tl.store(coefficients_ptr + at, coefficient, mask=live)
        if KEEP_PRE:
            tl.store(hidden_pre_ptr + at, hidden_pre, mask=live)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def rank_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    slot_of_token_ptr,
    mask_latents_ptr,
    mask_len_ptr,
    W_enc_rows_ptr,
    b_enc_ptr,
    coefficients_ptr,
    hidden_pre_ptr,
    ranks_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    max_latents,
    num_rows,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
):
    """rank_j += rows of this program that are larger, or equal with a lower number."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
    if slot < 0:
        return
    num_latents = tl.load(mask_len_ptr + slot)
    firing = 0
    for start in range(0, num_latents, BLOCK_LATENTS):
        latent = start + tl.arange(0, BLOCK_LATENTS)
        coefficient = tl.load(
            coefficients_ptr + token * max_latents + latent,
            mask=latent < num_latents,
            other=0.0,
        )
        firing += tl.sum((coefficient != 0.0).to(tl.int32), axis=0)
    if firing == 0:
        return
    if NORMALIZE != 0:
        mean, divisor, out = token_norm(
            hidden_states_ptr, residual_ptr, token, d_model, hidden_states_stride,
            residual_stride, HAS_RESIDUAL, NORMALIZE, BLOCK_D,
        )  # fmt: skip
    first = tl.program_id(1).to(tl.int64) * ROWS_PER_PROGRAM
    for offset in range(0, ROWS_PER_PROGRAM, BLOCK_ROWS):
        row = first + offset + tl.arange(0, BLOCK_ROWS)
        there = row < num_rows
        every = tl.load(b_enc_ptr + row, mask=there, other=0.0).to(tl.float32)
        for d_start in range(0, d_model, BLOCK_D):
            d = d_start + tl.arange(0, BLOCK_D)
            inside = d < d_model
            x = load_input(
                hidden_states_ptr, residual_ptr, token, d, d_model,
                hidden_states_stride, residual_stride, HAS_RESIDUAL,
            )  # fmt: skip
            if NORMALIZE != 0:
                x = tl.where(inside, (x - mean) / divisor, 0.0)
            w_enc = tl.load(
                W_enc_rows_ptr + row[:, None] * W_enc_rows_stride + d[None, :],
                mask=there[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            every += tl.sum(w_enc * x[None, :], axis=1)
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            at = token * max_latents + latent
            coefficient = tl.load(coefficients_ptr + at, mask=live, other=0.0)
            fires = coefficient != 0.0
            pre = tl.load(hidden_pre_ptr + at, mask=fires, other=0.0)
            mine = tl.load(
                mask_latents_ptr + slot * max_latents + latent, mask=live, other=0
            ).to(tl.int64)
            lower = row[None, :] < mine[:, None]
            before = (every[None, :] > pre[:, None]) | (
                (every[None, :] == pre[:, None]) & lower
            )
            # The latent's own value may differ from itself by a rounding here.
            before = before & (row[None, :] != mine[:, None]) & there[None, :]
            count = tl.sum(before.to(tl.int32), axis=1)
            tl.atomic_add(ranks_ptr + at, count, mask=fires)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def add_change_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    slot_of_token_ptr,
    mask_latents_ptr,
    mask_len_ptr,
    W_dec_rows_ptr,
    coefficients_ptr,
    ranks_ptr,
    hidden_states_stride,
    W_dec_rows_stride,
    max_latents,
    d_model,
    topk,
    RANKED: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """hidden_states += sum_j coefficient_j * W_dec_rows[j], rounded once."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
    if slot < 0:
        return
    num_latents = tl.load(mask_len_ptr + slot)
    if num_latents <= 0:
        return
    for d_start in range(0, d_model, BLOCK_D):
        d = d_start + tl.arange(0, BLOCK_D)
        inside = d < d_model
        change = tl.full((BLOCK_D,), 0.0, tl.float32)
        for start in range(0, num_latents, BLOCK_LATENTS):
            latent = start + tl.arange(0, BLOCK_LATENTS)
            live = latent < num_latents
            row = tl.load(
                mask_latents_ptr + slot * max_latents + latent, mask=live, other=0
            ).to(tl.int64)
            coefficient = tl.load(
                coefficients_ptr + token * max_latents + latent, mask=live, other=0.0
            )
            if RANKED:
                rank = tl.load(
                    ranks_ptr + token * max_latents + latent, mask=live, other=0
                )
                coefficient = tl.where(rank < topk, coefficient, 0.0)
            # Most latents are silent: their decoder rows are not worth a load.
            fires = coefficient != 0.0
            w_dec = tl.load(
                W_dec_rows_ptr + row[:, None] * W_dec_rows_stride + d[None, :],
                mask=fires[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            change += tl.sum(coefficient[:, None] * w_dec, axis=0)
        at = hidden_states_ptr + token * hidden_states_stride + d
        edited = tl.load(at, mask=inside, other=0.0).to(tl.float32) + change
        tl.store(at, edited.to(hidden_states_ptr.dtype.element_ty), mask=inside)


def launch(
    hidden_states: Tensor,
    residual: Tensor | None,
    slot_of_token: Tensor,
    mask_latents: Tensor,
    mask_scale: Tensor,
    mask_shift: Tensor,
    mask_gate: Tensor,
    mask_len: Tensor,
    W_enc_rows: Tensor,
    W_dec_rows: Tensor,
    b_enc: Tensor,
    edited_tokens: Tensor,
    topk: int = 0,
    normalize: int = 0,
) -> None:
    """Launch the kernels; nothing is read back, so a graph can capture it.

    Shapes: see the package's docstring.
    """
    num_tokens, d_model = hidden_states.shape
    if num_tokens == 0:
        return
    max_latents, num_rows = mask_latents.shape[1], W_enc_rows.shape[0]
    coefficients = hidden_states.new_empty(
        (num_tokens, max_latents), dtype=torch.float32
    )
    hidden_pre = torch.empty_like(coefficients) if topk else coefficients
    ranks = torch.zeros_like(coefficients, dtype=torch.int32) if topk else coefficients
    resid = hidden_states if residual is None else residual
    has_residual = residual is not None
    strides = (hidden_states.stride(0), resid.stride(0), W_enc_rows.stride(0))
    # Triton launches on the current device, which need not be the tensors' one.
    with torch.cuda.device_of(hidden_states):
        coefficients_kernel[(num_tokens,)](
            hidden_states, resid, slot_of_token, mask_latents, mask_scale, mask_shift,
            mask_gate, mask_len, W_enc_rows, b_enc, edited_tokens, coefficients,
            hidden_pre, *strides, max_latents, d_model,
            HAS_RESIDUAL=has_residual, NORMALIZE=normalize, KEEP_PRE=topk > 0,
            BLOCK_LATENTS=BLOCK_LATENTS, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        if topk:
            rank_kernel[(num_tokens, triton.cdiv(num_rows, ROWS_PER_PROGRAM))](
                hidden_states, resid, slot_of_token, mask_latents, mask_len,
                W_enc_rows, b_enc, coefficients, hidden_pre, ranks,
                *strides, max_latents, num_rows, d_model,
                HAS_RESIDUAL=has_residual, NORMALIZE=normalize,
                BLOCK_LATENTS=BLOCK_LATENTS, BLOCK_D=BLOCK_D, BLOCK_ROWS=BLOCK_ROWS,
                ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
            )  # fmt: skip
        add_change_kernel[(num_tokens,)](
            hidden_states, slot_of_token, mask_latents, mask_len, W_dec_rows,
            coefficients, ranks, hidden_states.stride(0), W_dec_rows.stride(0),
            max_latents, d_model, topk,
            RANKED=topk > 0, BLOCK_LATENTS=BLOCK_LATENTS, BLOCK_D=BLOCK_D,
        )  # fmt: skip
