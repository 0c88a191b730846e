# SPDX-License-Identifier: Apache-2.0
"""The op for CPUs in PyTorch calls, none of them per token. Two forms, by size:

- *gathered*: small batches, where ``native.cpp`` is missing or does not apply (TopK,
  float16). Every token gets its own copy of its mask's rows and all are done in one
  batched product, two dozen PyTorch calls whatever the mix of masks.
- *grouped*: the tokens of a mask together, one matrix product a mask. Reads a mask's
  rows once, so it suits prefill, where a mask has many tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.rank import ranking
from vllm_sauce_kernels.masked_edit.reference import EPS

GATHERED_ELEMENTS = 1 << 20
"""Most copied row elements for the gathered form: 4 MiB, about a core's L2 cache."""


class Pool(NamedTuple):
    """The SAE's rows and how its input is made."""

    W_enc_rows: Tensor
    W_dec_rows: Tensor
    b_enc: Tensor
    topk: int
    normalize: int


class Tokens(NamedTuple):
    """The tokens whose mask has latents here."""

    rows: Tensor
    """Rows of hidden_states. [n]"""
    slot: Tensor
    """[n]"""
    lens: Tensor
    """Latents of each token's mask. [n]"""


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
    topk: int = 0,
    normalize: int = 0,
    plan: Tensor | None = None,
) -> None:
    """Edit ``hidden_states`` in place.

    Shapes: see the package's docstring.
    """
    num_tokens, d_model = hidden_states.shape
    tables = (mask_latents, mask_scale, mask_shift, mask_gate)
    slots = slot_of_token[:num_tokens]
    # Idle is free: one reduction tells that no token has a mask.
    if num_tokens == 0 or int(slots.max()) < 0:
        return
    lens = mask_len[slots.clamp(min=0)].masked_fill_(slots < 0, 0)
    longest = int(lens.max())
    if longest == 0:
        return
    index = torch.nonzero(lens).flatten()
    tokens = Tokens(index, slots.index_select(0, index), lens.index_select(0, index))
    pool = Pool(W_enc_rows, W_dec_rows, b_enc, topk, normalize)
    if len(index) * longest * d_model <= GATHERED_ELEMENTS:
        _gathered(hidden_states, residual, tokens, longest, tables, pool)
    else:
        _grouped(hidden_states, residual, tokens, tables, pool)
    edited_tokens.index_add_(0, tokens.slot, torch.ones_like(tokens.rows))


def _gathered(
    hidden_states: Tensor,
    residual: Tensor | None,
    tokens: Tokens,
    longest: int,
    tables: tuple[Tensor, ...],
    pool: Pool,
) -> None:
    """Edit all tokens in one batched product over copies of their masks' rows."""
    latents, scale, shift, gate = (
        table[:, :longest].index_select(0, tokens.slot) for table in tables
    )
    live = torch.arange(longest) < tokens.lens[:, None]
    # What lies beyond mask_len is garbage, also as a row number.
    rows = torch.where(live, latents, latents[:, :1])
    edited, sae_in, out = _inputs(hidden_states, residual, tokens.rows, pool)
    shape = (*rows.shape, hidden_states.shape[1])
    W_enc = pool.W_enc_rows.index_select(0, rows.flatten()).view(shape).float()
    b_enc = pool.b_enc.index_select(0, rows.flatten()).view(*rows.shape, 1)
    hidden_pre = torch.baddbmm(b_enc, W_enc, sae_in[:, :, None]).squeeze(2)
    fires = live & (hidden_pre > gate)
    coefficient = _coefficients(
        fires, hidden_pre, scale, shift, sae_in, rows, out, pool
    )
    W_dec = pool.W_dec_rows.index_select(0, rows.flatten()).view(shape).float()
    # Added in float32 and rounded once, so index_copy_ and not index_add_.
    edited = torch.baddbmm(edited[:, None], coefficient[:, None], W_dec).squeeze(1)
    hidden_states.index_copy_(0, tokens.rows, edited.to(hidden_states.dtype))


def _grouped(
    hidden_states: Tensor,
    residual: Tensor | None,
    tokens: Tokens,
    tables: tuple[Tensor, ...],
    pool: Pool,
) -> None:
    """Edit the tokens of one mask after those of another, rows read once a mask."""
    slot, order = tokens.slot.sort(stable=True)
    distinct, counts = torch.unique_consecutive(slot, return_counts=True)
    groups = tokens.rows[order].split(counts.tolist())
    lens = tokens.lens[order[counts.cumsum(0) - 1]].tolist()
    for index, num_latents, group in zip(distinct.tolist(), lens, groups, strict=True):
        # Cut to mask_len before anything is computed: what lies beyond is garbage.
        rows, scale, shift, gate = (table[index, :num_latents] for table in tables)
        edited, sae_in, out = _inputs(hidden_states, residual, group, pool)
        W_enc = pool.W_enc_rows.index_select(0, rows).float()
        hidden_pre = torch.addmm(pool.b_enc.index_select(0, rows), sae_in, W_enc.T)
        fires = hidden_pre > gate
        coefficient = _coefficients(
            fires, hidden_pre, scale, shift, sae_in, rows.expand_as(fires), out, pool
        )
        W_dec = pool.W_dec_rows.index_select(0, rows).float()
        # Added in float32 and rounded once, so index_copy_ and not index_add_.
        edited = torch.addmm(edited, coefficient, W_dec)
        hidden_states.index_copy_(0, group, edited.to(hidden_states.dtype))


def _inputs(
    hidden_states: Tensor, residual: Tensor | None, index: Tensor, pool: Pool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what to edit, the SAE's input, and the scale of what it decodes.

    Shapes: index [n] -> [n, d_model], [n, d_model], [n, 1] or None for 1
    """
    edited = hidden_states.index_select(0, index).float()
    x = edited
    if residual is not None:
        x = edited + residual.index_select(0, index).float()
    if pool.normalize == 1:
        centred = x - x.mean(1, keepdim=True)
        std = centred.std(1, keepdim=True)
        return edited, centred / (std + EPS), std
    if pool.normalize == 2:
        out = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return edited, x / out, out
    return edited, x, None


def _coefficients(
    fires: Tensor,
    hidden_pre: Tensor,
    scale: Tensor,
    shift: Tensor,
    sae_in: Tensor,
    rows: Tensor,
    out: Tensor | None,
    pool: Pool,
) -> Tensor:
    """Return what each latent's decoder row is multiplied with.

    Shapes: fires, hidden_pre, rows [n, k] -> [n, k]
    """
    if pool.topk:
        fires = ranking(
            fires, hidden_pre, sae_in, rows, pool.W_enc_rows, pool.b_enc, pool.topk
        )
    coefficient = scale * hidden_pre + shift
    if out is not None:
        coefficient = coefficient * out
    # Entries that do not fire may hold garbage, NaN included.
    return torch.where(fires, coefficient, 0.0)
