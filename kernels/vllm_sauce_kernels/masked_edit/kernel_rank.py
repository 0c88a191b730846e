# SPDX-License-Identifier: Apache-2.0
"""TopK: how many latents of the whole dictionary rank before each that fires.

Between the tiles form's two launches. A program holds a tile of tokens, whatever their
masks, against a range of the dictionary's rows, so a row is read once for the tile; the
pre-activations of all latents never exist together. Tiles where no masked latent fires
are left at once.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import encode_rows, token_norms


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def firing(  # type: ignore[no-untyped-def]
    mask_scale_ptr,
    mask_shift_ptr,
    mask_gate_ptr,
    hidden_pre_ptr,
    slot,
    token,
    lens,
    latent,
    max_latents,
):
    """Return each token's pre-activation of its mask's latent, and if it may count."""
    live = latent < lens
    pre = tl.load(hidden_pre_ptr + token * max_latents + latent, mask=live, other=0.0)
    entry = slot * max_latents + latent
    gate = tl.load(mask_gate_ptr + entry, mask=live, other=float("inf"))
    scale = tl.load(mask_scale_ptr + entry, mask=live, other=0.0)
    shift = tl.load(mask_shift_ptr + entry, mask=live, other=0.0)
    return pre, live & (pre > gate) & (scale * pre + shift != 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def rank_kernel(  # type: ignore[no-untyped-def]
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
    hidden_pre_ptr,
    ranks_ptr,
    hidden_states_stride,
    residual_stride,
    W_enc_rows_stride,
    num_tokens,
    max_latents,
    num_rows,
    d_model,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
):
    """rank_j += rows of this program that are larger, or equal with a lower number."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    there = token < num_tokens
    slot = tl.load(slot_of_token_ptr + token, mask=there, other=-1).to(tl.int64)
    there = slot >= 0
    lens = tl.load(mask_len_ptr + slot, mask=there, other=0)
    longest = tl.max(lens, axis=0)
    some = 0
    for latent in range(0, longest):
        pre, fires = firing(
            mask_scale_ptr, mask_shift_ptr, mask_gate_ptr, hidden_pre_ptr, slot, token,
            lens, latent, max_latents,
        )  # fmt: skip
        some += tl.sum(fires.to(tl.int32), axis=0)
    if some == 0:
        return
    mean, divisor = 0.0 * token.to(tl.float32), 0.0 * token.to(tl.float32)
    if NORMALIZE != 0:
        mean, divisor, out = token_norms(
            hidden_states_ptr, residual_ptr, token, there, d_model,
            hidden_states_stride, residual_stride, HAS_RESIDUAL, NORMALIZE, BLOCK_D,
        )  # fmt: skip
    first = tl.program_id(1).to(tl.int64) * ROWS_PER_PROGRAM
    last = tl.minimum(first + ROWS_PER_PROGRAM, num_rows)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = row < last
        every = encode_rows(
            hidden_states_ptr, residual_ptr, W_enc_rows_ptr, token, there, row, inside,
            mean, divisor, 0, d_model, d_model, hidden_states_stride, residual_stride,
            W_enc_rows_stride, HAS_RESIDUAL, NORMALIZE, PRECISION, BLOCK_TOKENS,
            BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
        every += tl.load(b_enc_ptr + row, mask=inside, other=0.0)[None, :]
        for latent in range(0, longest):
            pre, fires = firing(
                mask_scale_ptr, mask_shift_ptr, mask_gate_ptr, hidden_pre_ptr, slot,
                token, lens, latent, max_latents,
            )  # fmt: skip
            if tl.sum(fires.to(tl.int32), axis=0) > 0:
                mine = tl.load(
                    mask_latents_ptr + slot * max_latents + latent, mask=fires, other=0
                )[:, None]
                lower = row[None, :] < mine
                before = (every > pre[:, None]) | ((every == pre[:, None]) & lower)
                # The latent's own value may differ from itself by a rounding here.
                before = before & (row[None, :] != mine) & inside[None, :]
                count = tl.sum(before.to(tl.int32), axis=1)
                at = ranks_ptr + token * max_latents + latent
                tl.atomic_add(at, count, mask=fires)
