# SPDX-License-Identifier: Apache-2.0
"""The op in PyTorch calls, for CPUs: a few matmuls per distinct slot."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_edit_eager(
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
    """Edit ``hidden_states`` in place, the tokens of a slot together.

    Shapes: see the package's docstring.
    """
    slots = slot_of_token[: hidden_states.shape[0]]
    # Idle is free: one reduction tells that no token has a mask.
    if slots.numel() == 0 or int(slots.max()) < 0:
        return
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        num_latents = int(mask_len[slot])
        if num_latents == 0:
            continue
        tokens = torch.nonzero(slots == slot).flatten()
        edited = hidden_states.index_select(0, tokens).float()
        x = edited
        if residual is not None:
            x = edited + residual.index_select(0, tokens).float()
        # Cut to mask_len before anything is computed: what lies beyond is garbage.
        rows = mask_latents[slot, :num_latents].long()
        hidden_pre = torch.addmm(
            b_enc.index_select(0, rows).float(),
            x,
            W_enc_rows.index_select(0, rows).float().T,
        )
        coefficient = torch.where(
            hidden_pre > mask_gate[slot, :num_latents],
            mask_scale[slot, :num_latents] * hidden_pre
            + mask_shift[slot, :num_latents],
            0.0,
        )
        # Added in float32 and rounded once, so index_copy_ and not index_add_.
        edited = edited + coefficient @ W_dec_rows.index_select(0, rows).float()
        hidden_states.index_copy_(0, tokens, edited.to(hidden_states.dtype))
        edited_tokens[slot] += tokens.numel()
