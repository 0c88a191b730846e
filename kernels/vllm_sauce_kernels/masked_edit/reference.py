# SPDX-License-Identifier: Apache-2.0
"""The definition of the op: every other form must agree with this file."""

from __future__ import annotations

from torch import Tensor


def masked_edit_ref(
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
    """Edit ``hidden_states`` in place, a token and a latent at a time.

    Shapes: see the package's docstring.
    """
    for token in range(hidden_states.shape[0]):
        slot = int(slot_of_token[token])
        if slot < 0 or mask_len[slot] == 0:
            continue
        x = hidden_states[token].float()
        if residual is not None:
            x = x + residual[token].float()
        edited = hidden_states[token].float()
        for j in range(int(mask_len[slot])):
            row = int(mask_latents[slot, j])
            hidden_pre = x @ W_enc_rows[row].float() + b_enc[row].float()
            if hidden_pre > mask_gate[slot, j]:
                coefficient = mask_scale[slot, j] * hidden_pre + mask_shift[slot, j]
                edited = edited + coefficient * W_dec_rows[row].float()
        hidden_states[token] = edited.to(hidden_states.dtype)
        edited_tokens[slot] += 1
