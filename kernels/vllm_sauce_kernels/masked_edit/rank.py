# SPDX-License-Identifier: Apache-2.0
"""Which firing latents are among the top k, the dictionary read tile by tile.

Most tokens have no firing masked latent and are done at once. For each pair of a token
and a latent that fires, what ranks before the latent is counted; the pre-activations of
all latents never exist together.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ROWS = 2048
"""Rows of the dictionary whose pre-activations exist at a time."""
TILE_ELEMENTS = 1 << 22
"""Most pre-activations, and most comparisons, held at a time: 16 MiB."""


def ranking(
    fires: Tensor,
    hidden_pre: Tensor,
    sae_in: Tensor,
    rows: Tensor,
    W_enc_rows: Tensor,
    b_enc: Tensor,
    topk: int,
) -> Tensor:
    """Return which of the latents that fire rank among the top k of the dictionary.

    Shapes: fires, hidden_pre, rows [n, k]; sae_in [n, d_model];
        W_enc_rows [num_rows, d_model]; b_enc [num_rows] -> [n, k] bool
    """
    token, column = torch.nonzero(fires, as_tuple=True)
    if not len(token):
        return fires
    pre, row = hidden_pre[token, column], rows[token, column]
    before = torch.zeros(len(token), dtype=torch.int64)
    for at in torch.arange(len(token)).split(max(1, TILE_ELEMENTS // TILE_ROWS)):
        needed, pair = torch.unique(token[at], return_inverse=True)
        x = sae_in.index_select(0, needed)
        for start in range(0, len(W_enc_rows), TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            every = torch.addmm(b_enc[tile], x, W_enc_rows[tile].float().T)
            before[at] += _before(every[pair], pre[at], row[at] - start)
    kept = torch.zeros_like(fires)
    kept[token, column] = before < topk
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
