# SPDX-License-Identifier: Apache-2.0
"""The definition of the op: every other form must agree with this file."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def masked_edit_ref(*args: Any, **kwargs: Any) -> None:
    """Edit ``hidden_states`` in place, a token and a latent at a time.

    Shapes: see the package's docstring.
    """
    op = Arguments(*args, **kwargs)
    for token in range(op.hidden_states.shape[0]):
        slot = int(op.slot_of_token[token])
        if slot < 0 or op.mask_len[slot] == 0:
            continue
        x = edited = op.hidden_states[token].float()
        if op.residual is not None:
            x = x + op.residual[token].float()
        sae_in, out = normalized(x, op.normalize)
        for j in range(int(op.mask_len[slot])):
            row = int(op.mask_latents[slot, j])
            hidden_pre = sae_in @ op.W_enc_rows[row].float() + op.b_enc[row].float()
            if not hidden_pre > op.mask_gate[slot, j]:
                continue
            if op.topk and ranks_before(op, sae_in, row) >= op.topk:
                continue
            coefficient = op.mask_scale[slot, j] * hidden_pre + op.mask_shift[slot, j]
            edited = edited + out * coefficient * op.W_dec_rows[row].float()
        op.hidden_states[token] = edited.to(op.hidden_states.dtype)
        op.edited_tokens[slot] += 1


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


def ranks_before(op: Arguments, sae_in: Tensor, row: int) -> int:
    """Return how many latents rank before one: larger, or equal with a lower row.

    Shapes: sae_in [d_model]
    """
    hidden_pre = op.W_enc_rows.float() @ sae_in + op.b_enc
    lower = torch.arange(len(hidden_pre)) < row
    mine = hidden_pre[row]
    return int(((hidden_pre > mine) | ((hidden_pre == mine) & lower)).sum())
