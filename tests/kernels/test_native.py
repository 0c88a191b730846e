# SPDX-License-Identifier: Apache-2.0
"""The C++ loop for CPUs: its dtypes, its rounding, and what it leaves to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.kernels.inputs import (
    expected,
    make_args,
    native_form,
    small_integers,
)
from vllm_sauce_kernels.masked_edit import dispatch, masked_edit, masked_edit_eager

Op = Callable[..., None]


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Op:
    """The op, failing where it leaves a call to PyTorch that C++ takes."""
    return native_form(monkeypatch)


@pytest.fixture
def python_calls(op: Op, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of tokens of the calls that the C++ loop leaves to PyTorch."""
    calls: list[int] = []

    def counted(*args: Any) -> None:
        calls.append(len(args[0]))
        masked_edit_eager(*args)

    monkeypatch.setattr(dispatch, "masked_edit_eager", counted)
    return calls


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
def test_every_pair_of_dtypes_is_exact(
    stream: torch.dtype, pool: torch.dtype, residual: bool, op: Op
) -> None:
    """Values that need rounding to bfloat16, ties to even among them: same bits."""
    args = make_args((33, 70, 20, 9, 4), small_integers(3), residual=residual)
    for name in ("hidden_states", "residual"):
        if args[name] is not None:
            args[name] = args[name].to(stream)
    for name in ("W_enc_rows", "W_dec_rows"):
        args[name] = args[name].to(pool)
    args["W_dec_rows"] *= 37 / 128
    want = expected(args)
    op(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_bfloat16_rounds_as_torch_does(op: Op) -> None:
    """Ties to even, infinities and NaN, through an edit that adds a value exactly."""
    values = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, torch.inf, torch.nan])
    # Rounded like a number, a NaN of all bits would become zero.
    all_bits = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([values, all_bits])
    args = make_args((1, 7, 1, 1, 1), small_integers(), residual=False)
    args["hidden_states"] = torch.zeros(1, 7, dtype=torch.bfloat16)
    args["W_enc_rows"].zero_(), args["b_enc"].fill_(1.0), args["mask_gate"].zero_()
    args["mask_scale"].zero_(), args["mask_shift"].fill_(1.0)
    args["W_dec_rows"] = values[None]
    op(**args)
    want = values.bfloat16()
    torch.testing.assert_close(
        args["hidden_states"][0], want, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("half", ["hidden_states", "W_enc_rows", "residual"])
def test_float16_takes_another_form(half: str, python_calls: list[int]) -> None:
    """What the loop does not read is done by PyTorch, with the right result."""
    args = make_args((5, 32, 8, 4, 2), small_integers(1))
    for name in ("W_enc_rows", "W_dec_rows") if half[0] == "W" else (half,):
        args[name] = args[name].half()
    want = expected(args)
    masked_edit(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert len(python_calls) == 1


def test_nan_never_fires(op: Op) -> None:
    """NaN in an activation, in a gate or in a silent latent's row stays there."""
    args = make_args((3, 40, 6, 5, 3), small_integers(2))
    args["slot_of_token"][:3] = torch.tensor([0, 1, 2])
    args["mask_len"].fill_(5)
    args["mask_latents"][:] = torch.arange(5)
    for name in ("mask_scale", "mask_shift"):
        args[name].fill_(1.0)
    args["mask_gate"].fill_(-torch.inf)
    args["hidden_states"][0, 7] = torch.nan
    args["mask_gate"][1] = torch.nan
    args["mask_gate"][2, 3] = torch.inf
    args["W_dec_rows"][3] = torch.nan
    want = expected(args)
    silent = args["hidden_states"][:2].clone()
    op(**args)
    torch.testing.assert_close(
        args["hidden_states"][:2], silent, rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(args["hidden_states"][2], want["hidden_states"][2])
    assert args["edited_tokens"].tolist() == [6, 6, 6]


@pytest.fixture(params=[(32, 1100), (1, 17600)], ids=["many cores", "one core"])
def d_model_of_cores(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many threads, and rows of which the loop takes 59 tokens' of 32."""
    cores, d_model = request.param
    before = torch.get_num_threads()
    # Where this process ran an engine, vLLM has made torch.set_num_threads do nothing.
    torch._C.set_num_threads(cores)
    assert torch.get_num_threads() == cores
    yield d_model
    torch._C.set_num_threads(before)


def test_many_rows_are_left_to_matrix_products(
    python_calls: list[int], d_model_of_cores: int
) -> None:
    """Beyond 2^21 row elements, or 2^25 of one core; idle tokens do not count."""
    args = make_args((100, d_model_of_cores, 40, 32, 2), small_integers(4))
    args["mask_len"].fill_(32)
    args["mask_scale"].fill_(-1.0), args["mask_shift"].fill_(1.0)
    args["slot_of_token"][:100] = -1
    args["slot_of_token"][:59] = 1
    masked_edit(**args)
    assert python_calls == []
    args["slot_of_token"][59] = 1
    want = expected(args)
    masked_edit(**args)
    assert python_calls == [100]
    # Exact, but for what is beyond 2^24 of wide rows.
    most = float(want["hidden_states"].abs().max())
    torch.testing.assert_close(
        args["hidden_states"], want["hidden_states"], rtol=0, atol=most / (1 << 20)
    )


@pytest.mark.parametrize(
    ("name", "index", "bad"),
    [
        ("mask_latents", (1, 2), 8),
        ("mask_latents", (1, 2), -1),
        ("slot_of_token", (4,), 2),
    ],
)
def test_numbers_that_lead_outside_are_errors(
    name: str, index: tuple[int, ...], bad: int, python_calls: list[int]
) -> None:
    """Foreign memory is never read: PyTorch names the index."""
    args = make_args((5, 32, 8, 4, 2), small_integers(5))
    args["mask_len"].fill_(4)
    args["slot_of_token"][:5] = 1
    args[name][index] = bad
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
        masked_edit(**args)
    assert python_calls == [5]
