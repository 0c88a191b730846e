# SPDX-License-Identifier: Apache-2.0
"""The op in Triton: two launches, one program a token, so no token sees its batch.

The edit of a latent must not be seen by the next one's pre-activation, so all
coefficients are written to a scratch buffer before the first row is changed. Two
launches order the two halves on every GPU, without a barrier.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

BLOCK_LATENTS = 16
BLOCK_D = 128


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
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    max_latents,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """coefficient_j = [hidden_pre_j > gate_j] (scale_j * hidden_pre_j + shift_j)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
    if slot < 0:
        return
    num_latents = tl.load(mask_len_ptr + slot)
    if num_latents <= 0:
        return
    tl.atomic_add(edited_tokens_ptr + slot, 1)
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
            x = tl.load(
                hidden_states_ptr + token * hidden_states_stride + d,
                mask=inside,
                other=0.0,
            ).to(tl.float32)
            if HAS_RESIDUAL:
                x += tl.load(
                    residual_ptr + token * residual_stride + d, mask=inside, other=0.0
                ).to(tl.float32)
            w_enc = tl.load(
                W_enc_rows_ptr + row[:, None] * W_enc_rows_stride + d[None, :],
                mask=live[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            hidden_pre += tl.sum(w_enc * x[None, :], axis=1)
        gate = tl.load(mask_gate_ptr + entry, mask=live, other=float("inf"))
        scale = tl.load(mask_scale_ptr + entry, mask=live, other=0.0)
        shift = tl.load(mask_shift_ptr + entry, mask=live, other=0.0)
        coefficient = tl.where(hidden_pre > gate, scale * hidden_pre + shift, 0.0)
        tl.store(
            coefficients_ptr + token * max_latents + latent, coefficient, mask=live
        )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def add_change_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    slot_of_token_ptr,
    mask_latents_ptr,
    mask_len_ptr,
    W_dec_rows_ptr,
    coefficients_ptr,
    hidden_states_stride,
    W_dec_rows_stride,
    max_latents,
    d_model,
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
) -> None:
    """Launch the two kernels; nothing is read back, so a graph can capture it.

    Shapes: see the package's docstring.
    """
    num_tokens, d_model = hidden_states.shape
    if num_tokens == 0:
        return
    max_latents = mask_latents.shape[1]
    coefficients = torch.empty(
        (num_tokens, max_latents), dtype=torch.float32, device=hidden_states.device
    )
    resid = hidden_states if residual is None else residual
    # Triton launches on the current device, which need not be the tensors' one.
    with torch.cuda.device_of(hidden_states):
        coefficients_kernel[(num_tokens,)](
            hidden_states, resid, slot_of_token, mask_latents, mask_scale, mask_shift,
            mask_gate, mask_len, W_enc_rows, b_enc, edited_tokens, coefficients,
            hidden_states.stride(0), resid.stride(0), W_enc_rows.stride(0),
            max_latents, d_model,
            HAS_RESIDUAL=residual is not None,
            BLOCK_LATENTS=BLOCK_LATENTS, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        add_change_kernel[(num_tokens,)](
            hidden_states, slot_of_token, mask_latents, mask_len, W_dec_rows,
            coefficients, hidden_states.stride(0), W_dec_rows.stride(0),
            max_latents, d_model,
            BLOCK_LATENTS=BLOCK_LATENTS, BLOCK_D=BLOCK_D,
        )  # fmt: skip
