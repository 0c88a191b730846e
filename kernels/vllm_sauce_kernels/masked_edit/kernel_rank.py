# SPDX-License-Identifier: Apache-2.0
"""TopK: how many latents of the whole dictionary rank before each that fires.

Between the tiles form's two launches. A program holds a tile of tokens, whatever their
masks, against a range of the dictionary's rows, so a row is read once for the tile; the
pre-activations of all latents never exist together. Tiles where no masked latent fires
are left at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from vllm_sauce_kernels.masked_edit.kernel_parts import (
    edit_of,
    encode_rows,
    token_norms,
)


class Tokens(NamedTuple):
    """A tile's tokens, their masks, and what was encoded for them."""

    masks: Any
    hidden_pre_ptr: Any
    slot: Any
    token: Any
    lens: Any


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def firing(tokens, latent):  # type: ignore[no-untyped-def]
    """Return each token's pre-activation of its mask's latent, and if it may count."""
    masks = tokens.masks
    live = latent < tokens.lens
    at = tokens.token * masks.max_latents + latent
    pre = tl.load(tokens.hidden_pre_ptr + at, mask=live, other=0.0)
    entry = tokens.slot * masks.max_latents + latent
    gate, scale, shift = edit_of(masks, entry, live)
    return pre, live & (pre > gate) & (scale * pre + shift != 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def count_firing(tokens, longest):  # type: ignore[no-untyped-def]
    """Return how many latents of the tile's masks may count."""
    some = 0
    for latent in range(0, longest):
        pre, fires = firing(tokens, latent)
        some += tl.sum(fires.to(tl.int32), axis=0)
    return some


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def count_before(ranks_ptr, tokens, longest, every, row, inside):  # type: ignore[no-untyped-def]
    """rank_j += rows that are larger than latent j, or equal with a lower number."""
    masks = tokens.masks
    for latent in range(0, longest):
        pre, fires = firing(tokens, latent)
        if tl.sum(fires.to(tl.int32), axis=0) > 0:
            entry = masks.latents_ptr + tokens.slot * masks.max_latents + latent
            mine = tl.load(entry, mask=fires, other=0)[:, None]
            lower = row[None, :] < mine
            before = (every > pre[:, None]) | ((every == pre[:, None]) & lower)
            # The latent's own value may differ from itself by a rounding here.
            before = before & (row[None, :] != mine) & inside[None, :]
            count = tl.sum(before.to(tl.int32), axis=1)
            at = ranks_ptr + tokens.token * masks.max_latents + latent
            tl.atomic_add(at, count, mask=fires)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def rank_kernel(  # type: ignore[no-untyped-def]
    stream,
    slot_of_token_ptr,
    masks,
    W_enc_rows,
    b_enc_ptr,
    hidden_pre_ptr,
    ranks_ptr,
    num_tokens,
    num_rows,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
):
    """Count what ranks before each latent that fires, in this program's rows."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    there = token < num_tokens
    slot = tl.load(slot_of_token_ptr + token, mask=there, other=-1).to(tl.int64)
    there = slot >= 0
    lens = tl.load(masks.len_ptr + slot, mask=there, other=0)
    tokens = Tokens(masks, hidden_pre_ptr, slot, token, lens)
    longest = tl.max(lens, axis=0)
    if count_firing(tokens, longest) == 0:
        return
    mean, divisor, out = token_norms(stream, token, there, NORMALIZE, BLOCK_D)
    first = tl.program_id(1).to(tl.int64) * ROWS_PER_PROGRAM
    last = tl.minimum(first + ROWS_PER_PROGRAM, num_rows)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = row < last
        every = encode_rows(
            stream, W_enc_rows, token, there, row, inside, mean, divisor, 0,
            stream.d_model, NORMALIZE, PRECISION, BLOCK_D,
        )  # fmt: skip
        every += tl.load(b_enc_ptr + row, mask=inside, other=0.0)[None, :]
        count_before(ranks_ptr, tokens, longest, every, row, inside)
