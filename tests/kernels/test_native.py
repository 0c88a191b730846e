# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU loop: its dtypes, its rounding, and what is remembered of tables."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.inputs import (
    expected,
    make_args,
    native_or_skip,
    normals,
    small_integers,
)
from vllm_sauce_kernels.masked_edit import masked_edit, native, tables


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
def test_every_pair_of_dtypes_is_exact(
    stream: torch.dtype, pool: torch.dtype, residual: bool
) -> None:
    """Values that need rounding to bfloat16, ties to even among them: same bits."""
    args = make_args((33, 70, 20, 9, 4), small_integers(3), residual=residual)
    for name in ("hidden_states", "residual"):
        if args[name] is not None:
            args[name] = args[name].to(stream)
    for name in ("W_enc_rows", "W_dec_rows"):
        args[name] = args[name].to(pool)
    args["W_dec_rows"] *= 37 / 128
    native_or_skip()
    assert native.takes(args["hidden_states"], args["residual"], args["W_enc_rows"])
    want = expected(args)
    masked_edit(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_bfloat16_rounds_as_torch_does() -> None:
    """Ties to even, infinities and NaN, through an edit that adds a value exactly."""
    native_or_skip()
    values = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, torch.inf, torch.nan])
    args = make_args((1, 6, 1, 1, 1), small_integers(), residual=False)
    args["hidden_states"] = torch.zeros(1, 6, dtype=torch.bfloat16)
    args["W_enc_rows"].zero_(), args["b_enc"].fill_(1.0), args["mask_gate"].zero_()
    args["mask_scale"].zero_(), args["mask_shift"].fill_(1.0)
    args["W_dec_rows"] = values[None]
    masked_edit(**args)
    want = values.bfloat16()
    torch.testing.assert_close(
        args["hidden_states"][0], want, rtol=0, atol=0, equal_nan=True
    )


def test_float16_takes_another_form() -> None:
    half = torch.zeros(2, 4, dtype=torch.float16)
    assert not native.takes(half, None, torch.zeros(1, 4))
    assert not native.takes(torch.zeros(2, 4), None, half)


def test_tables_that_change_in_place_are_seen() -> None:
    """Masks come and go in the same tensors; only their addresses are remembered."""
    args = make_args((5, 32, 8, 4, 2), small_integers(1))
    for step in range(3):
        args["mask_latents"].fill_(step)
        args["mask_len"].fill_(1 + step)
        args["mask_shift"].fill_(float(step))
        want = expected(args)
        masked_edit(**args)
        assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_a_table_that_moved_is_checked_again() -> None:
    """The same tensor object with other memory is not taken for the old one."""
    args = make_args((5, 32, 8, 4, 2), small_integers(2))
    masked_edit(**args)
    args["mask_shift"].data = args["mask_shift"].double()
    with pytest.raises(ValueError, match="mask_shift must be .*float32.*float64"):
        masked_edit(**args)
    args["mask_shift"].data = 3.0 * args["mask_shift"].float()
    want = expected(args)
    masked_edit(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_few_tables_are_remembered() -> None:
    for seed in range(tables.KEPT + 5):
        masked_edit(**make_args((2, 8, 4, 2, 1), normals(seed)))
    assert len(tables._remembered) == tables.KEPT
