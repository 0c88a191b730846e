# SPDX-License-Identifier: Apache-2.0
"""The op, as this device runs it, against its definition: before anything is served.

A kernel that compiles may still be wrong on a device nobody has tried. Every way that a
batch can take is compared with the reference on a few tokens of random activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.worker.runtime import run_edit
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit import masked_edit_ref
from vllm_sauce_kernels.masked_edit.plan import LARGE_TILE
from vllm_sauce_kernels.masked_edit.reference import normalized

SIZES = (1, 16, 300)
"""Tokens of the batches that are compared, beside the largest that is captured."""

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Of a row's largest number. A wrong form is off by all of the change."""

_DRAWS = 20
_LATENTS = 64
_ROWS = 9


def check_op(
    table: SiteTable, masks: list[Mask], sizes: Iterable[int], dtype: torch.dtype
) -> None:
    """Compare the op with its reference for batches of some sizes, of a model's dtype.

    Raises: CanaryError naming site, form and size where they differ.
    """
    rng = torch.Generator().manual_seed(0)
    try:
        slots = table.assign(masks)
        for slot in slots:
            count = min(int(table.mask_len[slot]), _LATENTS)
            table.mask_len[slot] = count
            table.slot_len[slot] = count
        for num_tokens in sorted(set(sizes)):
            _check_batch(table, slots, num_tokens, dtype, rng)
    finally:
        table.reset()


def _check_batch(
    table: SiteTable,
    slots: list[int],
    num_tokens: int,
    dtype: torch.dtype,
    rng: torch.Generator,
) -> None:
    """Compare one batch; it is drawn anew while it has nothing to edit.

    A mask of a single row fires on half of the tokens, of which few bear it.
    """
    what, device = f"the op on {num_tokens} tokens", table.mask_len.device
    for _ in range(_DRAWS):
        x = _activations(table, slots, num_tokens, rng)
        residual = torch.randn(x.shape, generator=rng)
        x, residual = x.to(device, dtype), residual.to(device, dtype)
        if _compare(table, slots, x, residual, what):
            return
    raise CanaryError(f"site {table.site}: {what} has nothing to edit")


def _activations(
    table: SiteTable, slots: list[int], num_tokens: int, rng: torch.Generator
) -> Tensor:
    """Return random activations that each look to one of the masks' latents."""
    x = torch.randn(num_tokens, table.W_dec_rows.shape[1], generator=rng)
    if table.topk:
        # Or none of the masks' latents would rank.
        rows = table.mask_latents[slots[0], : table.slot_len[slots[0]]].long()
        chosen = rows[torch.arange(num_tokens, device=rows.device) % len(rows)]
        x += 4.0 * table.W_enc_rows[chosen].float().cpu()
    return x


def _compare(
    table: SiteTable, slots: list[int], x: Tensor, residual: Tensor, what: str
) -> bool:
    """Compare with the reference; return whether that edits anything.

    Raises: CanaryError
    """
    num_tokens = len(x)
    # Spans of the first mask, of none, and of the last, if there is another.
    third = max(1, num_tokens // 3)
    # Full tiles and a token that is alone in one: kernels take it otherwise.
    first = third // LARGE_TILE * LARGE_TILE + 1 if third > LARGE_TILE else third
    last = slots[-1] if len(slots) > 1 else -1
    pattern = [slots[0]] * first + [-1] * third + [last] * num_tokens
    slots_of = np.array(pattern[:num_tokens], np.int32)
    _set_gates(table, set(slots), x.float() + residual.float())
    got = x.clone()
    run_edit(got, residual, slots_of, table)
    # The reference takes a token and a latent at a time: a few tokens say enough.
    few = torch.linspace(0, num_tokens - 1, min(_ROWS, num_tokens)).long()
    few = torch.cat([few, torch.tensor([first - 1])])
    want = x[few].cpu()
    args: dict[str, Any] = {
        k: v.cpu() if isinstance(v, Tensor) else v for k, v in table.op_args().items()
    }
    slot_of_token = torch.from_numpy(slots_of)
    masked_edit_ref(want, residual[few].cpu(), slot_of_token[few], **args)
    _judge(table, x, got, want, few, slot_of_token < 0, what)
    return not torch.equal(want, x[few].cpu())


def _judge(
    table: SiteTable,
    x: Tensor,
    got: Tensor,
    want: Tensor,
    few: Tensor,
    untouched: Tensor,
    what: str,
) -> None:
    if not torch.equal(got[untouched], x[untouched]):
        raise CanaryError(f"site {table.site}: {what} changes tokens that bear no mask")
    error = (got[few].cpu().float() - want.float()).abs().amax(1)
    allowed = _TOLERANCE[x.dtype] * want.float().abs().amax(1)
    wrong = int((~(error <= allowed)).sum())
    # Which of two almost equal latents ranks, rounding decides.
    if wrong > (1 if table.topk and len(few) > 1 else 0):
        raise CanaryError(
            f"site {table.site}: {what} is wrong on this device: off by "
            f"{float(error.max()):.3g} from the reference; nothing is served. Report "
            "the device and the versions of Triton and PyTorch"
        )


def _set_gates(table: SiteTable, slots: set[int], stream: Tensor) -> None:
    """Put each latent's gate where half of the tokens pass, far from any of them."""
    for slot in slots:
        count = int(table.mask_len[slot])
        if table.topk:
            table.mask_gate[slot, :count] = -1e30  # whatever ranks
            continue
        rows = table.mask_latents[slot, :count].long()
        W_enc, b_enc = table.W_enc_rows[rows].float(), table.b_enc[rows]
        sae_in = torch.stack([normalized(x, table.normalize)[0] for x in stream[:64]])
        pre = (sae_in @ W_enc.T + b_enc).sort(0).values
        if len(pre) < 4:
            table.mask_gate[slot, :count] = pre.amin(0) - 1.0
            continue
        middle = pre[len(pre) // 4 : 3 * len(pre) // 4 + 1]
        widest = middle.diff(dim=0).argmax(0, keepdim=True)
        below, above = middle.gather(0, widest), middle.gather(0, widest + 1)
        table.mask_gate[slot, :count] = ((below + above) / 2)[0]
