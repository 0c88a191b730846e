# SPDX-License-Identifier: Apache-2.0
"""The baseline of question d, and an empty kernel.

What kernels for many adapters do where they are simple: one program a token, which
keeps the token in registers and passes its mask's rows one by one. A decoder row is
loaded only where its latent fires. Nothing is shared between tokens of one mask.
"""

from __future__ import annotations

from typing import Any

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def per_token_kernel(  # type: ignore[no-untyped-def]
    hidden_states_ptr,
    residual_ptr,
    slot_of_token_ptr,
    mask_latents_ptr,
    mask_scale_ptr,
    mask_shift_ptr,
    mask_gate_ptr,
    mask_len_ptr,
    W_enc_rows_ptr,
    W_dec_rows_ptr,
    b_enc_ptr,
    edited_tokens_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    W_dec_rows_stride,
    max_latents,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Edit one token, its whole row in registers."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token_ptr + token).to(tl.int64)
    if slot < 0:
        return
    num_latents = tl.load(mask_len_ptr + slot)
    if num_latents == 0:
        return
    d = tl.arange(0, BLOCK_D)
    inside = d < d_model
    at = hidden_states_ptr + token * hidden_states_stride + d
    edited = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    x = edited
    if HAS_RESIDUAL:
        other = tl.load(residual_ptr + token * residual_stride + d, inside, other=0.0)
        x += other.to(tl.float32)
    fired = 0
    for latent in range(0, num_latents):
        entry = slot * max_latents + latent
        row = tl.load(mask_latents_ptr + entry).to(tl.int64)
        w_enc = tl.load(W_enc_rows_ptr + row * W_enc_rows_stride + d, inside, other=0.0)
        pre = tl.sum(x * w_enc.to(tl.float32), axis=0) + tl.load(b_enc_ptr + row)
        if pre > tl.load(mask_gate_ptr + entry):
            scale, shift = (
                tl.load(mask_scale_ptr + entry),
                tl.load(mask_shift_ptr + entry),
            )
            w_dec = tl.load(
                W_dec_rows_ptr + row * W_dec_rows_stride + d, inside, other=0.0
            )
            edited += (scale * pre + shift) * w_dec.to(tl.float32)
            fired += 1
    if fired > 0:
        tl.store(at, edited.to(hidden_states_ptr.dtype.element_ty), mask=inside)
    tl.atomic_add(edited_tokens_ptr + slot, 1)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def empty_kernel(some_ptr):  # type: ignore[no-untyped-def]
    """Do nothing: what a launch costs."""
    return


def launch_empty(some: Tensor, num_programs: int) -> None:
    """Launch the empty kernel over as many programs as ours has, with as many warps."""
    empty_kernel[(num_programs,)](some, num_warps=4)


def per_token(
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
    *unused: Any,
) -> None:
    """Edit ``hidden_states`` in place; ReLU and gates only, no TopK, no normalisation.

    Shapes: see the docstring of ``vllm_sauce_kernels.masked_edit``.
    """
    num_tokens, d_model = hidden_states.shape
    other = hidden_states if residual is None else residual
    per_token_kernel[(num_tokens,)](
        hidden_states, other, slot_of_token, mask_latents, mask_scale, mask_shift,
        mask_gate, mask_len, W_enc_rows, W_dec_rows, b_enc, edited_tokens,
        hidden_states.stride(0), other.stride(0), W_enc_rows.stride(0),
        W_dec_rows.stride(0), mask_latents.shape[1], d_model,
        HAS_RESIDUAL=residual is not None,
        BLOCK_D=triton.next_power_of_2(d_model), num_warps=8 if d_model > 2048 else 4,
    )  # fmt: skip
