# SPDX-License-Identifier: Apache-2.0
"""Every form of the masked edit agrees with the reference and touches nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.inputs import (
    Args,
    copy_of,
    expected,
    fill_with_garbage,
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

# num_tokens, d_model, num_pool, max_latents, num_slots
SHAPES = [(5, 64, 9, 4, 1), (7, 130, 23, 5, 3), (17, 257, 70, 31, 7), (5, 1, 4, 17, 2)]


FORMS = ["native", "gathered", "grouped", "triton", "planned"]
FORMS += ["op-eager", "op-triton"]


@pytest.fixture(params=FORMS)
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Op:
    """One form of the op at a time."""
    if request.param in ("triton", "planned", "op-triton"):
        request.getfixturevalue("interpreted")
    if request.param == "planned":
        return planned
    if request.param == "native":
        return native_form(monkeypatch)
    if request.param == "grouped":
        monkeypatch.setattr(eager, "GATHERED_ELEMENTS", 0)
        monkeypatch.setattr(eager, "PART_ELEMENTS", 300)  # a mask's tokens in parts
    if request.param.startswith("op-"):
        monkeypatch.setenv("VLLM_SAUCE_KERNEL", request.param.removeprefix("op-"))
        return masked_edit
    return masked_edit_triton if request.param == "triton" else masked_edit_eager


def edited_rows(args: Args) -> Tensor:
    """Return which rows belong to a slot with a mask."""
    slots = args["slot_of_token"][: len(args["hidden_states"])].long()
    edited: Tensor = (slots >= 0) & (args["mask_len"][slots.clamp(min=0)] > 0)
    return edited


def check(op: Op, args: Args, *, exact: bool = True) -> None:
    """Run one form and compare hidden states, untouched rows and counters."""
    before, want = args["hidden_states"].clone(), expected(args)
    counted = args["edited_tokens"].clone()
    op(**args)
    got, edited = args["hidden_states"], edited_rows(args)
    if exact:
        assert torch.equal(got, want["hidden_states"])
    else:
        torch.testing.assert_close(got, want["hidden_states"], rtol=1e-4, atol=1e-3)
    assert torch.equal(got[~edited], before[~edited])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])
    new = args["edited_tokens"] - counted
    assert int(new.sum()) == int(edited.sum())
    if edited.any():
        assert (got[edited] != before[edited]).any()


def plant_ties(args: Args) -> int:
    """Set gates to the pre-activations of one token a slot; return how many.

    Every second latent of the mask, so that others still fire.
    """
    x = args["hidden_states"].float()
    if args["residual"] is not None:
        x = x + args["residual"].float()
    hidden_pre = x @ args["W_enc_rows"].T + args["b_enc"]
    slots = args["slot_of_token"][: len(x)].tolist()
    ties = 0
    for slot in set(slots) - {-1}:
        tied = torch.arange(0, int(args["mask_len"][slot]), 2)
        rows = args["mask_latents"][slot, tied].long()
        args["mask_gate"][slot, tied] = hidden_pre[slots.index(slot), rows]
        ties += len(tied)
    return ties


def test_reference_is_the_formula() -> None:
    """One token, two latents, by hand; the second ties with its gate and is silent."""
    args: Args = {
        "hidden_states": torch.tensor([[1.0, 2.0]]),
        "residual": torch.tensor([[3.0, -1.0]]),
        "slot_of_token": torch.tensor([0], dtype=torch.int32),
        "mask_latents": torch.tensor([[1, 0]], dtype=torch.int32),
        "mask_scale": torch.tensor([[-1.5, -1.0]]),
        "mask_shift": torch.tensor([[0.5, 7.0]]),
        "mask_gate": torch.tensor([[0.0, 4.0]]),
        "mask_len": torch.tensor([2], dtype=torch.int32),
        "W_enc_rows": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "W_dec_rows": torch.tensor([[100.0, 100.0], [2.0, -4.0]]),
        "b_enc": torch.tensor([0.0, 1.0]),
        "edited_tokens": torch.zeros(1, dtype=torch.int64),
    }
    masked_edit_ref(**args)
    # x = (4, 1); hidden_pre = 6 > 0; change = (-1.5 * 6 + 0.5) * (2, -4)
    assert args["hidden_states"].tolist() == [[1.0 - 17.0, 2.0 + 34.0]]
    assert args["edited_tokens"].tolist() == [1]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_edit_is_exact(
    op: Op, shape: tuple[int, int, int, int, int], residual: bool
) -> None:
    """Small integers are exact in fp32: all forms agree bit for bit, ties included."""
    args = make_args(shape, small_integers(), residual=residual)
    assert plant_ties(args) > 0
    if shape[0] > 7:
        assert len(args["slot_of_token"][: shape[0]].unique()) > 3
    check(op, args)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_edit_is_close(
    op: Op, shape: tuple[int, int, int, int, int], residual: bool
) -> None:
    """Random floats, to the rounding of a float32 sum."""
    check(op, make_args(shape, normals(1), residual=residual), exact=False)


@pytest.mark.parametrize("silent", [1, 32, 64, 99])
def test_the_last_latents_of_a_mask_fire_alone(op: Op, silent: int) -> None:
    """Those before them may be whole blocks of a kernel."""
    args = make_args((9, 40, 120, 100, 2), small_integers(3))
    args["slot_of_token"][:] = 1
    args["mask_len"][:] = 100
    args["mask_gate"][:, :silent] = torch.inf
    args["mask_gate"][:, silent:] = -torch.inf
    args["mask_scale"][:], args["mask_shift"][:] = 0.0, 1.0
    check(op, args)


def test_the_last_tokens_of_a_mask_fire_alone(op: Op) -> None:
    """Those before them may be a whole part of a product."""
    args = make_args((20, 40, 5, 3, 1), small_integers(4), residual=False)
    args["slot_of_token"].zero_()
    args["hidden_states"][:18] = 0.0
    args["b_enc"].zero_(), args["mask_gate"].zero_()
    check(op, args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stream_with_float32_pool(op: Op, dtype: torch.dtype) -> None:
    """The change is computed in float32 and rounded once."""
    args = make_args((9, 65, 11, 6, 2), normals(2))
    args["hidden_states"] = args["hidden_states"].to(dtype)
    args["residual"] = args["residual"].to(dtype)
    before, want = args["hidden_states"].clone(), expected(args)["hidden_states"]
    op(**args)
    edited = edited_rows(args)
    assert torch.equal(args["hidden_states"][~edited], before[~edited])
    assert (args["hidden_states"][edited] != before[edited]).any()
    # Triton's interpreter truncates where PyTorch rounds: one unit in the last place.
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(args["hidden_states"], want, rtol=ulp, atol=ulp)


def test_eager_rounds_once() -> None:
    """In bfloat16 the eager form gives the reference's bits on exact inputs."""
    args = make_args((9, 65, 11, 6, 2), small_integers(3))
    args["hidden_states"] = args["hidden_states"].bfloat16()
    # More bits than bfloat16 holds, fewer than float32: a second rounding would show.
    args["W_dec_rows"] = args["W_dec_rows"] * 37 / 1024
    check(masked_edit_eager, args)


def test_strided_rows(op: Op) -> None:
    """Rows cut out of a wider tensor are edited; their neighbours are not."""
    args = make_args((6, 40, 9, 4, 2), small_integers(4))
    wide = torch.full((6, 100), 9.0)
    wide[:, 30:70] = args["hidden_states"]
    args["residual"] = torch.cat([args["residual"], args["residual"]], 1)[:, :40]
    args["W_enc_rows"] = torch.cat([args["W_enc_rows"]] * 2, 1)[:, 40:]
    args["hidden_states"] = wide[:, 30:70]
    check(op, args)
    assert (wide[:, :30] == 9.0).all() and (wide[:, 70:] == 9.0).all()


def test_no_slot_changes_nothing(op: Op) -> None:
    """With every slot -1, NaN weights cannot reach a row, negative zeros stay."""
    args = make_args((4, 33, 5, 3, 2), small_integers(5))
    args["slot_of_token"][:4] = -1
    args["hidden_states"][0] = -0.0
    for name in ("W_enc_rows", "W_dec_rows", "b_enc"):
        args[name].fill_(torch.nan)
    bits = args["hidden_states"].view(torch.int32).clone()
    op(**args)
    assert torch.equal(args["hidden_states"].view(torch.int32), bits)
    assert args["edited_tokens"].tolist() == [5, 5]


def test_empty_batch(op: Op) -> None:
    """No tokens: nothing happens, stale slots are not counted."""
    args = make_args((3, 33, 5, 3, 2), small_integers(6))
    args["hidden_states"] = args["hidden_states"][:0]
    args["residual"] = args["residual"][:0]
    op(**args)
    assert args["edited_tokens"].tolist() == [5, 5]


@pytest.mark.parametrize("max_latents", [0, 3])
def test_mask_without_latents(op: Op, max_latents: int) -> None:
    """A slot whose mask has no latent here edits and counts nothing."""
    args = make_args((4, 33, 5, 3, 2), small_integers(7))
    args["mask_len"].zero_()
    for name in ("mask_latents", "mask_scale", "mask_shift", "mask_gate"):
        args[name] = args[name][:, :max_latents].contiguous()
    fill_with_garbage(args)
    args["slot_of_token"][:] = torch.tensor([0, 1, -1, 1, 0, 0, 0])
    before = args["hidden_states"].clone()
    op(**args)
    assert torch.equal(args["hidden_states"], before)
    assert args["edited_tokens"].tolist() == [5, 5]


def test_batchmates_do_not_matter(op: Op) -> None:
    """A token's edit is the same alone and among others with other masks."""
    together = make_args((12, 70, 20, 9, 3), small_integers(8))
    alone = [copy_of(together) for _ in range(12)]
    op(**together)
    for token, args in enumerate(alone):
        for name in ("hidden_states", "residual", "slot_of_token"):
            args[name] = args[name][token : token + 1]
        op(**args)
        row = together["hidden_states"][token]
        assert torch.equal(args["hidden_states"][0], row)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("form", ["native", "eager", "triton", "planned"])
def test_any_batch(
    data: st.DataObject,
    interpreted: object,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any shape, slots and masks: reference's bits, untouched rows, exact counters."""
    shape = (
        data.draw(st.integers(0, 6), "num_tokens"),
        data.draw(st.integers(1, 140), "d_model"),
        data.draw(st.integers(1, 9), "num_pool"),
        max_latents := data.draw(st.integers(1, 18), "max_latents"),
        num_slots := data.draw(st.integers(1, 4), "num_slots"),
    )
    seed = data.draw(st.integers(0, 1000), "seed")
    residual = data.draw(st.booleans(), "residual")
    args = make_args(shape, small_integers(seed), residual=residual, seed=seed)
    lengths = st.lists(
        st.integers(0, max_latents), min_size=num_slots, max_size=num_slots
    )
    args["mask_len"] = torch.tensor(data.draw(lengths, "mask_len"), dtype=torch.int32)
    slots = st.lists(
        st.integers(-1, num_slots - 1), min_size=shape[0], max_size=shape[0] + 2
    )
    args["slot_of_token"] = torch.tensor(
        data.draw(slots, "slot_of_token"), dtype=torch.int32
    )
    # The first draw put garbage beyond other lengths.
    for name in ("mask_scale", "mask_shift", "mask_gate"):
        args[name] = small_integers(seed + 1)(num_slots, max_latents)
    fill_with_garbage(args)
    want = expected(args)
    forms = {
        "eager": masked_edit_eager,
        "triton": masked_edit_triton,
        "planned": planned,
    }
    (forms.get(form) or native_form(monkeypatch))(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])


def test_compile_keeps_and_orders_the_mutation() -> None:
    """Between two reads of one tensor, the op stays, and stays between them."""
    args = make_args((5, 32, 8, 4, 2), small_integers(9))

    def model(hidden_states: Tensor, rest: Args) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states + 0.0
        first = hidden_states * 2.0
        masked_edit(hidden_states, **rest)
        return first, hidden_states * 2.0, hidden_states

    before = args.pop("hidden_states")
    want = expected({"hidden_states": before, **args})
    edited_tokens = args["edited_tokens"]
    # Inductor and not aot_eager: its re-inplacing pass could merge the two reads.
    compiled = torch.compile(model, fullgraph=True)
    first, second, edited = compiled(before, args)
    assert torch.equal(first, before * 2.0)
    assert torch.equal(second, want["hidden_states"] * 2.0)
    assert torch.equal(edited, want["hidden_states"])
    assert torch.equal(edited_tokens, want["edited_tokens"])
    assert not torch.equal(first, second)


def test_compile_keeps_an_op_whose_result_nobody_reads() -> None:
    """The edit of an input and the counter are effects, not dead code."""
    args = make_args((5, 32, 8, 4, 2), small_integers(10))
    want = expected(args)
    torch.compile(masked_edit, fullgraph=True, dynamic=True)(**args)
    assert torch.equal(args["hidden_states"], want["hidden_states"])
    assert torch.equal(args["edited_tokens"], want["edited_tokens"])
    assert (want["edited_tokens"] != 5).any()


@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(residual: bool) -> None:
    """Schema, fake form and functionalisation hold what torch expects of an op."""
    args = make_args((5, 32, 8, 4, 2), small_integers(11), residual=residual)
    torch.library.opcheck(
        torch.ops.vllm_sauce.masked_edit.default, tuple(args.values())
    )


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("residual", torch.zeros(4, 32), r"residual must be \[5, 32\], got \[4, 32\]"),
        ("slot_of_token", torch.zeros(4, dtype=torch.int32), "num_tokens=5"),
        ("slot_of_token", torch.zeros(5, dtype=torch.int64), "torch.int32.*int64"),
        ("hidden_states", torch.zeros(32, 5).T, r"stride\(1\) == 1"),
        ("hidden_states", torch.zeros(5, 2, 32), "two dimensions"),
        ("W_enc_rows", torch.zeros(8, 32, dtype=torch.int32), "float dtype"),
        ("W_dec_rows", torch.zeros(7, 32), r"W_dec_rows must be \[8, 32\]"),
        ("mask_gate", torch.zeros(2, 3), r"mask_gate must be .*\[2, 4\]"),
        ("mask_len", torch.zeros(3, dtype=torch.int32), "mask_len must be"),
        ("b_enc", torch.zeros(8, dtype=torch.bfloat16), "float32.*bfloat16"),
        ("edited_tokens", torch.zeros(2, dtype=torch.int32), "edited_tokens must be"),
    ],
)
@pytest.mark.parametrize("form", [masked_edit, masked_edit_triton])
def test_wrong_arguments_are_refused(
    form: Op, name: str, bad: Tensor, says: str
) -> None:
    """The message names the argument, what was wanted and what came."""
    args = make_args((5, 32, 8, 4, 2), small_integers(12))
    args[name] = bad
    with pytest.raises(ValueError, match=says):
        form(**args)
