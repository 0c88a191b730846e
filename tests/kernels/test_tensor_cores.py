# SPDX-License-Identifier: Apache-2.0
"""The Triton forms at what only they have: low-precision products, large tiles."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kernels.inputs import Args, expected, make_args, normals, small_integers
from tests.kernels.plans import planned
from vllm_sauce_kernels.masked_edit import masked_edit, masked_edit_triton, plan


@pytest.fixture(autouse=True)
def no_overflow(interpreted: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is largest here does not overflow; tests.interpreter leaves that out."""
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    options = replace(builder.options, sanitize_overflow=True)
    monkeypatch.setattr(builder, "options", options)


@pytest.fixture(params=["triton", "planned"])
def op(request: pytest.FixtureRequest, interpreted: object) -> Callable[..., None]:
    """The op without a plan and with one."""
    return masked_edit_triton if request.param == "triton" else planned


def with_pool(args: Args, dtype: torch.dtype) -> Args:
    for name in ("W_enc_rows", "W_dec_rows"):
        args[name] = args[name].to(dtype)
    return args


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_low_precision_rows_lose_nothing_but_their_own_rounding(
    op: Callable[..., None], dtype: torch.dtype
) -> None:
    """A float32 stream against the same rows: far closer than bfloat16 products are."""
    args = with_pool(make_args((9, 200, 30, 20, 3), normals(2)), dtype)
    want = expected(args)["hidden_states"]
    op(**args)
    # Sums of 200 x 20 products of order 1: bfloat16's own error would be about 1.
    torch.testing.assert_close(args["hidden_states"], want, rtol=1e-3, atol=2e-2)


def test_large_tiles_are_exact(
    op: Callable[..., None], interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill's block sizes: a full tile, one that is not, one of a single token."""
    for module in (interpreted, plan):
        monkeypatch.setattr(module, "FEW_TOKENS", 0)
    args = make_args((150, 70, 40, 35, 3), small_integers(3))
    args["slot_of_token"][:] = 1
    args["slot_of_token"][15] = 2
    args["slot_of_token"][20:30] = -1
    args["slot_of_token"][130:] = 0
    want = expected(args)
    op(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])


def test_ten_thousand_latents_in_one_mask(interpreted: object) -> None:
    """More than any block."""
    args = make_args((1, 16, 10_000, 10_000, 1), small_integers(4))
    args["slot_of_token"][:1] = 0
    args["mask_latents"][0] = torch.randperm(10_000)
    want = expected(args)
    planned(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_ten_thousand_latents_in_one_mask_on_cpus() -> None:
    args = make_args((2, 16, 10_000, 10_000, 1), small_integers(4))
    args["slot_of_token"][:2] = 0
    want = expected(args)
    masked_edit(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_tokens_of_a_tile_do_not_matter_to_each_other(
    op: Callable[..., None],
) -> None:
    """A row that holds infinities leaves the others of its tile bit for bit alone."""
    args = make_args((12, 70, 20, 9, 1), normals(5))
    args["slot_of_token"][:] = 0
    other = {**args, "hidden_states": args["hidden_states"].clone()}
    other["edited_tokens"] = args["edited_tokens"].clone()
    other["hidden_states"][4] = torch.inf
    op(**args)
    op(**other)
    rest = torch.arange(12) != 4
    assert torch.equal(args["hidden_states"][rest], other["hidden_states"][rest])
