# SPDX-License-Identifier: Apache-2.0
"""The definition of the op: every other form must agree with this file."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5
"""What SAELens adds to the standard deviation."""


class Arguments(NamedTuple):
    """The op's arguments, in order; their shapes are in the package's docstring."""

    hidden_states: Tensor
    residual: Tensor | None
    slot_of_token: Tensor
    mask_latents: Tensor
    mask_scale: Tensor
    mask_shift: Tensor
    mask_gate: Tensor
    mask_len: Tensor
    W_enc_rows: Tensor
    W_dec_rows: Tensor
    b_enc: Tensor
    edited_tokens: Tensor
    topk: int = 0
    normalize: int = 0
    plan: Tensor | None = None


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
    topk: int = 0,
    normalize: int = 0,
    plan: Tensor | None = None,
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
        sae_in, out = normalized(x, normalize)
        edited = hidden_states[token].float()
        for j in range(int(mask_len[slot])):
            row = int(mask_latents[slot, j])
            hidden_pre = sae_in @ W_enc_rows[row].float() + b_enc[row].float()
            if not hidden_pre > mask_gate[slot, j]:
                continue
            if topk and ranks_before(sae_in, W_enc_rows, b_enc, row) >= topk:
                continue
            coefficient = mask_scale[slot, j] * hidden_pre + mask_shift[slot, j]
            edited = edited + out * coefficient * W_dec_rows[row].float()
        hidden_states[token] = edited.to(hidden_states.dtype)
        edited_tokens[slot] += 1


def normalized(x: Tensor, normalize: int) -> tuple[Tensor, Tensor | float]:
    """Return the SAE's input for an activation, and the scale of what it decodes.

    Shapes: x [d_model] float32 -> [d_model], a number
    Source: SAELens v6, ``SAE._setup_activation_normalization``
    """
    if normalize == 1:
        centred = x - x.mean()
        std = centred.std()
        return centred / (std + EPS), std
    if normalize == 2:
        out = x.norm() / x.shape[0] ** 0.5
        return x / out, out
    return x, 1.0


def ranks_before(sae_in: Tensor, W_enc_rows: Tensor, b_enc: Tensor, row: int) -> int:
    """Return how many latents rank before one: larger, or equal with a lower row.

    Shapes: sae_in [d_model], W_enc_rows [num_rows, d_model], b_enc [num_rows]
    """
    hidden_pre = W_enc_rows.float() @ sae_in + b_enc
    lower = torch.arange(len(hidden_pre)) < row
    mine = hidden_pre[row]
    return int(((hidden_pre > mine) | ((hidden_pre == mine) & lower)).sum())
