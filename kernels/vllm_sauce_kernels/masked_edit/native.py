# SPDX-License-Identifier: Apache-2.0
"""The op for few tokens on a CPU: one compiled loop, for calls cost more than sums.

A PyTorch call costs about what this whole loop does for a token, so decoding runs here:
no gathered copies, and no cost for a token without a mask. vLLM brings Numba.

float32 and bfloat16 streams and pools; the latter as their bits, since NumPy has no
bfloat16. Sums may be reassociated, which lets the compiler use vector registers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.reference import EPS
from vllm_sauce_kernels.masked_edit.tables import remember

MAX_ELEMENTS = 1 << 21
"""Most row elements worth one core; beyond it, matrix products on all cores win."""

DTYPES = (torch.float32, torch.bfloat16)


def available() -> bool:
    """Return whether the loop was asked for, by ``VLLM_SAUCE_NUMBA=1``.

    Not by itself: vLLM 0.32 cannot start an engine on a CPU in a process that has
    imported Numba (its scan for kernels trips over an object of llvmlite), so a second
    engine in one process would not start.
    """
    return os.environ.get("VLLM_SAUCE_NUMBA") == "1"


def takes(hidden_states: Tensor, residual: Tensor | None, pool: Tensor) -> bool:
    """Return whether the dtypes are of the kinds that the loop reads."""
    stream = hidden_states.dtype
    same = residual is None or residual.dtype == stream
    return same and stream in DTYPES and pool.dtype in DTYPES and available()


def bits(tensor: Tensor) -> Any:
    """Return a tensor as an array, bfloat16 as its 16 bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def edit_tokens(
    hidden_states: Tensor,
    residual: Tensor | None,
    slot_of_token: Tensor,
    tables: tuple[Tensor, ...],
    mask_len: Tensor,
    W_enc_rows: Tensor,
    W_dec_rows: Tensor,
    b_enc: Tensor,
    edited_tokens: Tensor,
    normalize: int,
) -> None:
    """Edit ``hidden_states`` in place.

    Shapes: see the package's docstring.
    """
    static = (*tables, mask_len, W_enc_rows, W_dec_rows, b_enc, edited_tokens)
    known = remember(static, False, lambda: None)
    if known.views is None:
        known.views = [bits(tensor) for tensor in static]
    hidden = bits(hidden_states)
    bf16 = torch.bfloat16
    _compiled(hidden_states.dtype == bf16, W_enc_rows.dtype == bf16)(
        hidden,
        hidden if residual is None else bits(residual),
        residual is not None,
        slot_of_token.numpy(),
        *known.views,
        normalize,
    )


@cache
def _compiled(bf16_stream: bool, bf16_pool: bool) -> Callable[..., None]:
    """Return the loop for one pair of dtypes; compiled at its first call."""
    from numba import njit  # type: ignore[import-untyped, unused-ignore]

    # Not "fast": infinities and NaN must compare as IEEE says.
    fast = {"reassoc", "contract"}

    @njit(inline="always")  # type: ignore[untyped-decorator, unused-ignore]
    def widen(value):  # type: ignore[no-untyped-def]
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    @njit(inline="always")  # type: ignore[untyped-decorator, unused-ignore]
    def keep(value):  # type: ignore[no-untyped-def]
        return value

    @njit(inline="always")  # type: ignore[untyped-decorator, unused-ignore]
    def narrow(value):  # type: ignore[no-untyped-def]
        if np.isnan(value):
            return np.uint16(0x7FC0)
        raw = np.float32(value).view(np.uint32)
        # To nearest, ties to even.
        odd = (raw >> np.uint32(16)) & np.uint32(1)
        return np.uint16((raw + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    load = widen if bf16_stream else keep
    store = narrow if bf16_stream else keep
    weight = widen if bf16_pool else keep
    zero, one, eps = np.float32(0), np.float32(1), np.float32(EPS)

    @njit(fastmath=fast)  # type: ignore[untyped-decorator, unused-ignore]
    def norm(x, normalize):  # type: ignore[no-untyped-def]
        """Normalise x in place; returns the scale of what is decoded."""
        if normalize == 0:
            return one
        mean = zero
        if normalize == 1:
            for d in range(x.shape[0]):
                mean += x[d]
            mean /= np.float32(x.shape[0])
        square = zero
        for d in range(x.shape[0]):
            x[d] -= mean
            square += x[d] * x[d]
        if normalize == 1:
            out = np.sqrt(square / np.float32(x.shape[0] - 1))
            divisor = out + eps
        else:
            out = np.sqrt(square / np.float32(x.shape[0]))
            divisor = out
        for d in range(x.shape[0]):
            x[d] /= divisor
        return out

    @njit(fastmath=fast, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
    def loop(  # type: ignore[no-untyped-def]
        hidden, resid, has_resid, slots, latents, scale, shift, gate, lens,
        W_enc, W_dec, b_enc, counts, normalize,
    ):  # fmt: skip
        num_tokens, d_model = hidden.shape
        x = np.empty(d_model, np.float32)
        edited = np.empty(d_model, np.float32)
        coefficient = np.empty(latents.shape[1], np.float32)
        for token in range(num_tokens):
            slot = slots[token]
            if slot < 0 or lens[slot] == 0:
                continue
            counts[slot] += 1
            for d in range(d_model):
                edited[d] = load(hidden[token, d])
                x[d] = edited[d]
            if has_resid:
                for d in range(d_model):
                    x[d] += load(resid[token, d])
            out = norm(x, normalize)
            fired = False
            for j in range(lens[slot]):
                row = latents[slot, j]
                total = zero
                for d in range(d_model):
                    total += weight(W_enc[row, d]) * x[d]
                pre = total + b_enc[row]
                coefficient[j] = zero
                if pre > gate[slot, j]:
                    coefficient[j] = out * (scale[slot, j] * pre + shift[slot, j])
                    fired = True
            if not fired:
                continue
            for j in range(lens[slot]):
                if coefficient[j] != zero:
                    row = latents[slot, j]
                    for d in range(d_model):
                        edited[d] += coefficient[j] * weight(W_dec[row, d])
            for d in range(d_model):
                hidden[token, d] = store(edited[d])

    compiled: Callable[..., None] = loop
    return compiled
