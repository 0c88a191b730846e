# SPDX-License-Identifier: Apache-2.0
"""TopK's rank test and the normalisations that depend on the token, in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.inputs import (
    Args,
    expected,
    make_args,
    native_form,
    normals,
    small_integers,
)
from tests.kernels.plans import planned
from vllm_sauce_kernels.masked_edit import (
    eager,
    masked_edit,
    masked_edit_eager,
    masked_edit_ref,
    masked_edit_triton,
)

Op = Callable[..., None]
Shape = tuple[int, int, int, int, int]

# num_tokens, d_model, num_pool, max_latents, num_slots
SHAPES: list[Shape] = [(5, 64, 9, 4, 1), (9, 130, 23, 18, 3), (3, 2, 40, 17, 2)]
FORMS = ("native", "gathered", "grouped", "triton", "planned")


def form_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Op:
    """Return a form of the op, forced where PyTorch would choose."""
    if name == "triton":
        return masked_edit_triton
    if name == "planned":
        return planned
    if name == "native":
        return native_form(monkeypatch)
    limit = 0 if name == "grouped" else 1 << 40
    monkeypatch.setattr(eager, "PART_ELEMENTS", 300)  # a mask's tokens in parts
    monkeypatch.setattr(eager, "GATHERED_ELEMENTS", limit)
    return masked_edit_eager


@pytest.fixture(params=FORMS)
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Op:
    """One form of the op at a time."""
    if request.param in ("triton", "planned"):
        kernel = request.getfixturevalue("interpreted")
        monkeypatch.setattr(kernel, "ROWS_PER_PROGRAM", 32)  # several tiles
    return form_of(request.param, monkeypatch)


def with_dictionary(args: Args, num_rows: int, floats: Callable[..., Tensor]) -> Args:
    """Give the encoder all the rows of a dictionary; the pool's come first."""
    d_model, num_pool = args["W_enc_rows"].shape[1], len(args["W_enc_rows"])
    more = max(0, num_rows - num_pool)
    args["W_enc_rows"] = torch.cat([args["W_enc_rows"], floats(more, d_model)])
    args["b_enc"] = torch.cat([args["b_enc"], floats(more)])
    return args


def ranked_out(args: Args) -> int:
    """Return how many rows TopK leaves as they are that ReLU would change."""
    relu = expected({**args, "topk": 0})["hidden_states"]
    return int((expected(args)["hidden_states"] != relu).any(1).sum())


@pytest.mark.parametrize("topk", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_topk_is_exact(
    op: Op, shape: Shape, topk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small integers: bit for bit, with ties at the rank that decides."""
    monkeypatch.setattr(eager, "TILE_ROWS", 32)  # several tiles, the last not full
    args = with_dictionary(make_args(shape, small_integers()), 75, small_integers(5))
    args["topk"] = topk
    want = expected(args)
    assert ranked_out(args) > 0
    op(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])


def test_the_definition_of_topk_is_torchs() -> None:
    """On distinct values, exactly those latents count that torch.topk keeps."""
    args = with_dictionary(make_args((1, 16, 40, 40, 1), normals(3)), 90, normals(4))
    args["mask_latents"][0] = torch.arange(40)
    args["mask_gate"].zero_()
    args["mask_len"].fill_(40)
    args.update(topk=20, residual=None)
    x = args["hidden_states"][0].clone()
    hidden_pre = args["W_enc_rows"] @ x + args["b_enc"]
    kept = torch.zeros(90, dtype=torch.bool)
    kept[torch.topk(hidden_pre, 20).indices] = True
    z = torch.where(kept, hidden_pre.relu(), 0.0)[:40]
    coefficient = torch.where(
        z > 0, args["mask_scale"][0] * z + args["mask_shift"][0], 0
    )
    assert 0 < int((z > 0).sum()) < int((hidden_pre[:40] > 0).sum())
    masked_edit_ref(**args)
    want = x + coefficient @ args["W_dec_rows"]
    torch.testing.assert_close(args["hidden_states"][0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [1000.0, -1000.0])
def test_equal_latents_fill_the_last_places_in_the_order_of_their_rows(
    op: Op, bias: float
) -> None:
    """All are alike: as torch.topk's contract asks, exactly k of them count.

    Below zero too, where rows beyond the dictionary, read as zeros, would be larger.
    """
    args = make_args((1, 8, 7, 7, 1), small_integers())
    args["W_enc_rows"] = args["W_enc_rows"][:1].expand(7, 8).contiguous()
    args["mask_latents"][0] = torch.arange(7)
    args["b_enc"].fill_(bias)
    args["mask_gate"].fill_(-2000.0)
    args["mask_len"].fill_(7)
    args["mask_scale"].zero_(), args["mask_shift"].fill_(1.0)
    args["W_dec_rows"] = torch.eye(7, 8)
    before = args["hidden_states"].clone()
    op(**args, topk=3)
    change = (args["hidden_states"] - before)[0]
    assert change.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("topk", [0, 12])
@pytest.mark.parametrize("normalize", [1, 2])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_normalised_inputs(
    op: Op, shape: Shape, normalize: int, topk: int, residual: bool
) -> None:
    """To the rounding of float32; without the normalisation it would be far off."""
    floats = normals(2)
    args = make_args(shape, floats, residual=residual)
    if topk:
        args = with_dictionary(args, 40, floats)
    args["hidden_states"] = 3.0 * args["hidden_states"] + 1.0
    args.update(topk=topk, normalize=normalize)
    want, other = expected(args), expected({**args, "normalize": 0})
    assert (want["hidden_states"] - other["hidden_states"]).abs().max() > 0.1
    op(**args)
    torch.testing.assert_close(
        args["hidden_states"], want["hidden_states"], rtol=1e-4, atol=1e-3
    )


def test_a_constant_row_normalises_to_nothing(op: Op) -> None:
    """Layer norm of a constant is zero, not NaN: only the bias is left."""
    args = make_args((2, 32, 5, 5, 1), normals(6), residual=False)
    args["hidden_states"].fill_(2.0)
    args["slot_of_token"].zero_()
    op(**args, normalize=1)
    assert torch.equal(args["hidden_states"], torch.full((2, 32), 2.0))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_any_topk(
    data: st.DataObject,
    interpreted: Any,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any shape, k and tile: the reference's bits."""
    shape = (
        data.draw(st.integers(0, 6), "num_tokens"),
        data.draw(st.integers(1, 20), "d_model"),
        data.draw(st.integers(1, 30), "num_pool"),
        data.draw(st.integers(1, 18), "max_latents"),
        data.draw(st.integers(1, 3), "num_slots"),
    )
    seed = data.draw(st.integers(0, 1000), "seed")
    if shape[0] == 0:
        return
    args = make_args(shape, small_integers(seed), seed=seed)
    num_rows = data.draw(st.integers(shape[2], 80), "num_rows")
    args = with_dictionary(args, num_rows, small_integers(seed + 1))
    args["topk"] = data.draw(st.integers(1, num_rows + 2), "topk")
    monkeypatch.setattr(eager, "TILE_ROWS", data.draw(st.integers(1, 90), "tile"))
    want = expected(args)
    form_of(form, monkeypatch)(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])


def test_ranking_never_holds_tokens_times_dictionary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest product is one tile, whatever the batch and the dictionary."""
    seen: list[int] = []
    addmm = torch.addmm

    def counted(*tensors: Tensor) -> Tensor:
        found = addmm(*tensors)
        seen.append(found.numel())
        return found

    monkeypatch.setattr(eager, "TILE_ROWS", 64)
    monkeypatch.setattr(eager, "TILE_ELEMENTS", 64 * 50)
    monkeypatch.setattr(torch, "addmm", counted)
    args = with_dictionary(make_args((300, 8, 9, 6, 2), normals()), 1000, normals())
    args["b_enc"][:9] = 50.0
    masked_edit_eager(**args, topk=5)
    assert len(seen) > 100
    assert max(seen) <= 64 * 50


@pytest.mark.parametrize("name", ["gathered", "grouped"])
def test_where_nothing_fires_the_dictionary_is_not_encoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "addmm", lambda *_: pytest.fail("encoded it"))
    args = with_dictionary(make_args((30, 8, 9, 6, 2), normals()), 1000, normals())
    args["mask_gate"].fill_(torch.inf)
    before = args["hidden_states"].clone()
    form_of(name, monkeypatch)(**args, topk=5)
    assert torch.equal(args["hidden_states"], before)
    args["mask_gate"].fill_(-torch.inf)
    with pytest.raises(pytest.fail.Exception, match="encoded it"):
        masked_edit_eager(**args, topk=5)


@pytest.mark.parametrize(("name", "bad"), [("topk", -1), ("normalize", 3)])
@pytest.mark.parametrize("form", [masked_edit, masked_edit_triton])
def test_unknown_kinds_are_refused(form: Op, name: str, bad: int) -> None:
    args = make_args((5, 32, 8, 4, 2), small_integers(12))
    with pytest.raises(ValueError, match=f"{name} must be .* got {bad}"):
        form(**args, **{name: bad})


def test_the_op_takes_the_kinds_along() -> None:
    """The custom op passes both numbers on, compiled too."""
    args = with_dictionary(make_args((5, 32, 8, 4, 2), normals(8)), 30, normals(9))
    args.update(topk=3, normalize=1)
    want = expected(args)
    torch.compile(masked_edit, fullgraph=True)(**args)
    torch.testing.assert_close(args["hidden_states"], want["hidden_states"])
    torch.library.opcheck(
        torch.ops.vllm_sauce.masked_edit.default, tuple(args.values())
    )
