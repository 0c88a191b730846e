# SPDX-License-Identifier: Apache-2.0
"""Arguments for the masked edit's tests, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit import (
    dispatch,
    masked_edit,
    masked_edit_eager,
    masked_edit_ref,
    native,
)
from vllm_sauce_kernels.masked_edit.reference import Arguments

Args = dict[str, Any]


def native_form(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return the op; its Python form, if called for what C++ takes, fails the test.

    Skips only where there is no compiler.
    """
    if not native.prepare():
        if "no C++ compiler" in native.how():
            pytest.skip(native.how())
        pytest.fail(native.how())

    def checked(*args: Any) -> None:
        given = dict(zip(Arguments._fields, args, strict=False))
        half = torch.float16 in (x.dtype for x in args if isinstance(x, Tensor))
        assert half or given.get("topk"), "the C++ loop did not take this call"
        masked_edit_eager(*args)

    monkeypatch.setattr(dispatch, "masked_edit_eager", checked)
    return masked_edit


def make_args(
    shape: tuple[int, int, int, int, int],
    floats: Callable[..., Tensor],
    *,
    residual: bool = True,
    seed: int = 0,
) -> Args:
    """Random arguments with every kind of slot in them, and garbage where none reads.

    ``floats(*size)`` draws the values.
    """
    num_tokens, d_model, num_pool, max_latents, num_slots = shape
    gen = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=gen, dtype=torch.int32)

    mask_len = ints(1, max_latents + 1, num_slots)
    mask_len[0] = max_latents
    args: Args = {
        "hidden_states": floats(num_tokens, d_model),
        "residual": floats(num_tokens, d_model) if residual else None,
        # Persistent buffers are longer than the batch; the rest is stale.
        "slot_of_token": ints(-1, num_slots, num_tokens + 3),
        "mask_latents": ints(0, num_pool, num_slots, max_latents),
        "mask_scale": floats(num_slots, max_latents),
        "mask_shift": floats(num_slots, max_latents),
        "mask_gate": floats(num_slots, max_latents),
        "mask_len": mask_len,
        "W_enc_rows": floats(num_pool, d_model),
        "W_dec_rows": floats(num_pool, d_model),
        "b_enc": floats(num_pool),
        "edited_tokens": torch.full((num_slots,), 5, dtype=torch.int64),
    }
    args["slot_of_token"][0] = 0
    args["slot_of_token"][1:num_tokens:3] = -1
    fill_with_garbage(args)
    return args


def fill_with_garbage(args: Args) -> None:
    """Fill every table entry beyond mask_len with what would show if it were read.

    The row exists: a broken guard shall fail a test, not end the run with a signal.
    """
    dead = torch.arange(args["mask_latents"].shape[1]) >= args["mask_len"][:, None]
    args["mask_latents"][dead] = 0
    args["mask_scale"][dead] = torch.nan
    args["mask_shift"][dead] = torch.nan
    # A NaN gate would hide the NaN behind it: nothing is greater.
    args["mask_gate"][dead] = -torch.inf


def small_integers(seed: int = 0) -> Callable[..., Tensor]:
    """Integers of -2..2: sums of their products are exact in float32, and gates tie."""
    gen = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randint(-2, 3, size, generator=gen).float()


def normals(seed: int = 0) -> Callable[..., Tensor]:
    """Standard normal floats."""
    gen = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=gen)


def copy_of(args: Args) -> Args:
    """Clone what the op mutates."""
    mutated = ("hidden_states", "edited_tokens")
    return {k: v.clone() if k in mutated else v for k, v in args.items()}


def expected(args: Args) -> Args:
    """Return the arguments after the reference."""
    want = copy_of(args)
    masked_edit_ref(**want)
    return want
