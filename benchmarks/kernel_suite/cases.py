# SPDX-License-Identifier: Apache-2.0
"""Batches to edit: random rows and masks, and what an edit must at least move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit import plan_of

POOL = 2048
DECODE_TOKENS = 256
"""Up to here each token is a request of its own, and neighbours differ in mask."""
QUIET, LOUD = -1e-6, -1.0
"""Scales. Timed edits repeat in place: loud ones would change what fires."""
NEVER = float("inf")
FIRES = ("half", "none")

Args = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One cell."""

    tokens: int
    latents: int
    d_model: int
    masks: int
    pool: int = POOL
    fire: str = "half"
    """How many masked latents exceed their gate: "half" of them or "none"."""

    @property
    def requests(self) -> tuple[list[int], list[int]]:
        """Slots and numbers of tokens, in the order of the batch."""
        if self.tokens <= DECODE_TOKENS:
            return [t % self.masks for t in range(self.tokens)], [1] * self.tokens
        ends = [self.tokens * (m + 1) // self.masks for m in range(self.masks)]
        counts = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        return list(range(self.masks)), counts

    @property
    def used_bytes(self) -> int:
        """About how many rows' and activations' elements a call touches."""
        rows = min(self.pool, self.masks * self.latents)
        return self.d_model * 2 * (rows + self.tokens)

    def __str__(self) -> str:
        return (
            f"tokens {self.tokens}, latents {self.latents}, d_model {self.d_model}, "
            f"masks {self.masks}, fire {self.fire}"
        )


SMALL, LARGE = Case(12, 7, 72, 3, 24), Case(300, 40, 192, 2, 64)
"""What is checked: odd sizes against the definition, and full tiles of tokens."""


def pool_for(latents: int) -> int:
    """Return a pool that masks can differ in."""
    return max(POOL, 2 * latents)


class Rows(NamedTuple):
    """An SAE's rows: W_enc [num_rows, d_model], W_dec, b_enc [num_rows]."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor


def random_rows(
    num_rows: int, d_model: int, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Rows:
    """Return rows of length about one, so that pre-activations are of order one."""
    gen = torch.Generator(device).manual_seed(seed)
    W_enc, W_dec = (
        torch.randn(
            num_rows, d_model, generator=gen, device=device, dtype=dtype
        ).mul_(d_model**-0.5)
        for _ in range(2)
    )  # fmt: skip
    return Rows(W_enc, W_dec, torch.zeros(num_rows, device=device))


def op_args(case: Case, rows: Rows, *, scale: float = QUIET, seed: int = 0) -> Args:
    """Return the op's arguments, each mask of distinct rows of the pool."""
    device, dtype = rows.W_dec.device, rows.W_dec.dtype
    gen = torch.Generator().manual_seed(seed)
    order = torch.rand(case.masks, case.pool, generator=gen).argsort(1)
    latents = order[:, : case.latents].int().contiguous().to(device)
    slots, counts = case.requests
    token_slots = torch.tensor(slots).repeat_interleave(torch.tensor(counts))
    device_gen = torch.Generator(device).manual_seed(seed)
    shape = (case.tokens, case.d_model)
    hidden_states, residual = (
        # Their sum is standard normal.
        torch.randn(shape, generator=device_gen, device=device, dtype=dtype).mul_(0.7)
        for _ in range(2)
    )
    gate = 0.0 if case.fire == "half" else NEVER
    return {
        "hidden_states": hidden_states,
        "residual": residual,
        "slot_of_token": token_slots.int().to(device),
        "mask_latents": latents,
        "mask_scale": torch.full(latents.shape, scale, device=device),
        "mask_shift": torch.zeros(latents.shape, device=device),
        "mask_gate": torch.full(latents.shape, gate, device=device),
        "mask_len": torch.full(
            (case.masks,), case.latents, dtype=torch.int32, device=device
        ),
        "W_enc_rows": rows.W_enc,
        "W_dec_rows": rows.W_dec,
        "b_enc": rows.b_enc,
        "edited_tokens": torch.zeros(case.masks, dtype=torch.int64, device=device),
        "topk": 0,
        "normalize": 0,
        "plan": None,
    }


def with_plan(args: Args) -> Args:
    """Return the arguments with their batch's plan."""
    plan = plan_of(args["slot_of_token"], args["mask_len"])
    return {**args, "plan": plan.to(args["hidden_states"].device)}


def several(
    case: Case, rows: Rows, cold_bytes: int, most: int, *, topk: int = 0
) -> list[Args]:
    """Return batches to take turns, so that a call finds little of the last one cached.

    Each has masks and activations of its own; rows are copied as often as it needs for
    ``cold_bytes`` in all.
    """
    itemsize = rows.W_dec.dtype.itemsize
    wanted = -(-cold_bytes // (case.used_bytes * itemsize))
    count = max(1, min(most, wanted))
    pool_bytes = itemsize * (rows.W_enc.numel() + rows.W_dec.numel())
    copies = [rows]
    while len(copies) < min(count, -(-cold_bytes // pool_bytes)):
        copies.append(Rows(rows.W_enc.clone(), rows.W_dec.clone(), rows.b_enc))
    return [
        {**op_args(case, copies[seed % len(copies)], seed=seed), "topk": topk}
        for seed in range(count)
    ]


class Work(NamedTuple):
    """What an edit of a batch must at least do."""

    rows_bytes: int
    """Encoder rows of the masks in use, and decoder rows that fire, each once."""
    stream_bytes: int
    """Reading hidden states and residual; writing hidden states if anything fires."""
    flops: int
    """Products with the masks' encoder rows, and with decoder rows if they fire."""

    @property
    def bytes(self) -> int:
        """All that must be moved."""
        return self.rows_bytes + self.stream_bytes


def work_of(case: Case, args: Args) -> Work:
    """Count a batch's work by computing what fires."""
    x = (args["hidden_states"].float() + args["residual"].float()).to(
        args["W_enc_rows"].dtype
    )
    slots = args["slot_of_token"].long()
    fired = torch.zeros(case.pool, dtype=torch.bool, device=x.device)
    pairs = 0
    for slot in range(case.masks if case.fire == "half" else 0):
        rows = args["mask_latents"][slot].long()
        pre = x[slots == slot] @ args["W_enc_rows"][rows].T
        fires = pre.float() + args["b_enc"][rows] > args["mask_gate"][slot]
        fired[rows[fires.any(0)]] = True
        pairs += int(fires.sum())
    encoded = len(torch.unique(args["mask_latents"]))
    row_bytes = case.d_model * x.dtype.itemsize
    streams = 3 if pairs else 2
    return Work(
        (encoded + int(fired.sum())) * row_bytes,
        case.tokens * streams * row_bytes,
        2 * case.d_model * (case.tokens * case.latents + pairs),
    )
