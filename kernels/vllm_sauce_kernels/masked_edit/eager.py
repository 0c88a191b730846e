# SPDX-License-Identifier: Apache-2.0
"""The op for CPUs in PyTorch calls, none of them per token. Two forms, by size:

- *gathered*: small batches, where ``native.cpp`` is missing or does not apply (TopK,
  float16). Every token gets its own copy of its mask's rows and all are done in one
  batched product, two dozen PyTorch calls whatever the mix of masks.
- *grouped*: the tokens of a mask together, one matrix product a mask. Reads a mask's
  rows once, so it suits prefill, where a mask has many tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.reference import EPS, Arguments

GATHERED_ELEMENTS = 1 << 20
"""Most copied row elements for the gathered form: 4 MiB, about a core's L2 cache."""
PART_ELEMENTS = 1 << 19
"""Most elements of tokens that one product takes: larger temporaries leave the caches,
and those of 32 MiB are mapped and zeroed by the system anew each time."""
TILE_ROWS = 2048
"""Rows of the dictionary whose pre-activations exist at a time."""
TILE_ELEMENTS = 1 << 22
"""Most pre-activations, and most comparisons, held at a time: 16 MiB."""


class Tokens(NamedTuple):
    """The tokens whose mask has latents here."""

    rows: Tensor
    """Rows of hidden_states. [n]"""
    slot: Tensor
    """[n]"""
    lens: Tensor
    """Latents of each token's mask. [n]"""


def masked_edit_eager(*args: Any, **kwargs: Any) -> None:
    """As ``masked_edit``, in PyTorch calls."""
    op = Arguments(*args, **kwargs)
    num_tokens, d_model = op.hidden_states.shape
    slots = op.slot_of_token[:num_tokens]
    # Idle is free: one reduction tells that no token has a mask.
    if num_tokens == 0 or int(slots.max()) < 0:
        return
    lens = op.mask_len[slots.clamp(min=0)].masked_fill_(slots < 0, 0)
    longest = int(lens.max())
    if longest == 0:
        return
    index = torch.nonzero(lens).flatten()
    tokens = Tokens(index, slots.index_select(0, index), lens.index_select(0, index))
    if len(index) * longest * d_model <= GATHERED_ELEMENTS:
        _gathered(op, tokens, longest)
    else:
        _grouped(op, tokens)
    op.edited_tokens.index_add_(0, tokens.slot, torch.ones_like(tokens.rows))


def _tables(op: Arguments) -> tuple[Tensor, ...]:
    return op.mask_latents, op.mask_scale, op.mask_shift, op.mask_gate


def _gathered(op: Arguments, tokens: Tokens, longest: int) -> None:
    """Edit all tokens in one batched product over copies of their masks' rows."""
    latents, scale, shift, gate = (
        table[:, :longest].index_select(0, tokens.slot) for table in _tables(op)
    )
    live = torch.arange(longest) < tokens.lens[:, None]
    # What lies beyond mask_len is garbage, also as a row number.
    rows = torch.where(live, latents, latents[:, :1])
    edited, sae_in, out = _inputs(_tokens_of(op, tokens.rows)[0])
    shape = (*rows.shape, op.hidden_states.shape[1])
    W_enc = op.W_enc_rows.index_select(0, rows.flatten()).view(shape).float()
    b_enc = op.b_enc.index_select(0, rows.flatten()).view(*rows.shape, 1)
    hidden_pre = torch.baddbmm(b_enc, W_enc, sae_in[:, :, None]).squeeze(2)
    fires = live & (hidden_pre > gate)
    change = (scale * hidden_pre + shift, out)
    coefficient = _coefficients(op, fires, hidden_pre, change, sae_in, rows)
    W_dec = op.W_dec_rows.index_select(0, rows.flatten()).view(shape).float()
    # Added in float32 and rounded once, so index_copy_ and not index_add_.
    edited = torch.baddbmm(edited[:, None], coefficient[:, None], W_dec).squeeze(1)
    op.hidden_states.index_copy_(0, tokens.rows, edited.to(op.hidden_states.dtype))


def _grouped(op: Arguments, tokens: Tokens) -> None:
    """Edit the tokens of one mask after those of another, rows read once a mask."""
    slot, order = tokens.slot.sort(stable=True)
    distinct, counts = torch.unique_consecutive(slot, return_counts=True)
    groups = tokens.rows[order].split(counts.tolist())
    lens = tokens.lens[order[counts.cumsum(0) - 1]].tolist()
    most = max(1, PART_ELEMENTS // op.hidden_states.shape[1])
    for index, num_latents, group in zip(distinct.tolist(), lens, groups, strict=True):
        # Cut to mask_len before anything is computed: what lies beyond is garbage.
        rows, scale, shift, gate = (t[index, :num_latents] for t in _tables(op))
        W_enc = op.W_enc_rows.index_select(0, rows).float()
        b_enc, W_dec = op.b_enc.index_select(0, rows), None
        for part in group.split(most):
            here, copied = _tokens_of(op, part)
            edited, sae_in, out = _inputs(here)
            hidden_pre = torch.nn.functional.linear(sae_in, W_enc, b_enc)
            fires = hidden_pre > gate
            # Usually no latent fires.
            if not fires.any():
                continue
            if W_dec is None:
                W_dec = op.W_dec_rows.index_select(0, rows).float()
            change = (scale * hidden_pre + shift, out)
            every = rows.expand_as(fires)
            coefficient = _coefficients(op, fires, hidden_pre, change, sae_in, every)
            # Added in float32, rounded once; a float32 stream is ``edited`` itself.
            here.hidden_states.copy_(edited.addmm_(coefficient, W_dec))
            if copied:
                op.hidden_states.index_copy_(0, part, here.hidden_states)


def _tokens_of(op: Arguments, index: Tensor) -> tuple[Arguments, bool]:
    """Return the arguments with some tokens only, and whether these are copies.

    Tokens that follow one another, as in prefill, are views. Shapes: index [n] rising
    """
    first, last = int(index[0]), int(index[-1]) + 1
    copied = last - first > len(index)

    def taken(rows: Tensor) -> Tensor:
        return rows.index_select(0, index) if copied else rows[first:last]

    residual = None if op.residual is None else taken(op.residual)
    tokens = op._replace(hidden_states=taken(op.hidden_states), residual=residual)
    return tokens, copied


def _inputs(op: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what to edit, the SAE's input, and the scale of what it decodes.

    Shapes: [n, d_model], [n, d_model], [n, 1] or None for 1
    """
    x = edited = op.hidden_states.float()
    if op.residual is not None:
        x = edited + op.residual.float()
    if op.normalize == 1:
        centred = x - x.mean(1, keepdim=True)
        std = centred.std(1, keepdim=True)
        return edited, centred / (std + EPS), std
    if op.normalize == 2:
        out = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return edited, x / out, out
    return edited, x, None


def _coefficients(
    op: Arguments,
    fires: Tensor,
    hidden_pre: Tensor,
    change: tuple[Tensor, Tensor | None],
    sae_in: Tensor,
    rows: Tensor,
) -> Tensor:
    """Return what each latent's decoder row is multiplied with.

    ``change`` is what its mask makes of a latent, and the scale of what is decoded.

    Shapes: fires, hidden_pre, rows [n, k] -> [n, k]
    """
    if op.topk:
        fires = _ranking(op, fires, hidden_pre, sae_in, rows)
    coefficient, out = change
    if out is not None:
        coefficient = coefficient * out
    # Entries that do not fire may hold garbage, NaN included.
    return torch.where(fires, coefficient, 0.0)


def _ranking(
    op: Arguments, fires: Tensor, hidden_pre: Tensor, sae_in: Tensor, rows: Tensor
) -> Tensor:
    """Return which of the latents that fire rank among the top k of the dictionary.

    Most tokens have no firing masked latent and are done at once. For each pair of a
    token and a latent that fires, what ranks before the latent is counted, tile by
    tile; the pre-activations of all latents never exist together.

    Shapes: fires, hidden_pre, rows [n, k]; sae_in [n, d_model] -> [n, k] bool
    """
    token, column = torch.nonzero(fires, as_tuple=True)
    if not len(token):
        return fires
    pre, row = hidden_pre[token, column], rows[token, column]
    before = torch.zeros(len(token), dtype=torch.int64)
    for at in torch.arange(len(token)).split(max(1, TILE_ELEMENTS // TILE_ROWS)):
        needed, pair = torch.unique(token[at], return_inverse=True)
        x = sae_in.index_select(0, needed)
        for start in range(0, len(op.W_enc_rows), TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            W_enc = op.W_enc_rows[tile].float()
            every = torch.addmm(op.b_enc[tile], x, W_enc.T)
            before[at] += _before(every[pair], pre[at], row[at] - start)
    kept = torch.zeros_like(fires)
    kept[token, column] = before < op.topk
    return kept


def _before(every: Tensor, pre: Tensor, row: Tensor) -> Tensor:
    """Count a tile's latents that are larger, or equal with a lower row.

    Shapes: every [num_pairs, tile], pre and row [num_pairs]; row counts from the
        tile's start -> [num_pairs]
    """
    index = torch.arange(every.shape[1])
    lower = index < row[:, None]
    first = (every > pre[:, None]) | ((every == pre[:, None]) & lower)
    # The latent's own value may differ from itself by a rounding here.
    return (first & (index != row[:, None])).sum(1)
