# SPDX-License-Identifier: Apache-2.0
"""A wrong op is found before anything is served."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plugin.random_bundle import random_sae
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.worker import canary, op_check
from vllm_sauce.plugin.worker.op_check import SIZES, check_op
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit import masked_edit

SITE = "decoder.1"
D_MODEL = 48


def catalogue() -> Catalogue:
    """Return a concept of two latents and one of eighty."""
    edits = {"few": (3, 7), "many": tuple(range(8, 88))}
    return Catalogue(
        [
            Concept(name=n, domain="d", edits={SITE: SiteEdit.uniform(e, gamma=-0.5)})
            for n, e in edits.items()
        ]
    )


def table(dtype: torch.dtype = torch.float32, **kind: Any) -> SiteTable:
    """Return a site's table for an SAE of some kind."""
    fp8 = kind.pop("fp8", False)
    sae = random_sae(5, D_MODEL, **kind)
    return SiteTable(sae, catalogue(), SITE, 4, 80, dtype=dtype, fp8=fp8)


def masks() -> list[Mask]:
    """Return the masks that are compared."""
    return [Mask.of([(name, 1.0)], "d") for name in ("few", "many")]


KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "jumprelu": {"architecture": "jumprelu", "threshold": torch.full((96,), 0.3)},
    "topk": {"architecture": "topk", "k": 8},
    "layer_norm": {"normalize_activations": "layer_norm"},
    "fp8": {"fp8": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_op_of_this_machine_passes(kind: str, dtype: torch.dtype) -> None:
    """For every kind of SAE and dtype, and the table is as it was."""
    one = table(dtype, **dict(KINDS[kind]))
    before = one.checksum()
    check_op(one, masks(), (*SIZES, 513), dtype)
    assert one.checksum() == before == one.loaded_checksum
    assert not one._slot_of_mask
    assert not one.mask_len.any() and not one.edited_tokens.any()


def wrong(change: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """Return the op with one of its arguments changed."""

    def run(
        hidden_states: Tensor,
        residual: Tensor | None,
        slots: np.ndarray,
        one: SiteTable,
    ) -> None:
        args: dict[str, Any] = {
            **one.op_args(),
            "hidden_states": hidden_states,
            "residual": residual,
            "slot_of_token": torch.from_numpy(slots),
        }
        change(args)
        masked_edit(**args)

    return run


def _nothing(args: dict[str, Any]) -> None:
    args["slot_of_token"] = torch.full_like(args["slot_of_token"], -1)


def _everything(args: dict[str, Any]) -> None:
    args["slot_of_token"] = args["slot_of_token"].clamp(min=0)


def _no_residual(args: dict[str, Any]) -> None:
    args["residual"] = None


def _no_gate(args: dict[str, Any]) -> None:
    args["mask_gate"] = torch.full_like(args["mask_gate"], -torch.inf)


def _shifted_rows(args: dict[str, Any]) -> None:
    args["W_dec_rows"] = args["W_dec_rows"].roll(1, 0)


def _half(args: dict[str, Any]) -> None:
    args["mask_scale"] = args["mask_scale"] * 0.9


@pytest.mark.parametrize(
    "change", [_nothing, _everything, _no_residual, _no_gate, _shifted_rows, _half]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_op_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None],
    dtype: torch.dtype,
) -> None:
    """Whatever it gets wrong."""
    monkeypatch.setattr(op_check, "run_edit", wrong(change))
    with pytest.raises(CanaryError, match="decoder.1"):
        check_op(table(dtype), masks(), SIZES, dtype)


def test_a_bystander_that_is_edited_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the reference is computed for a few tokens, and not for that one."""
    tokens = 513
    compared = set(torch.linspace(0, tokens - 1, op_check._ROWS).long().tolist())

    def edit_one_more(args: dict[str, Any]) -> None:
        slots = args["slot_of_token"] = args["slot_of_token"].clone()
        plain = (slots < 0).nonzero()[:, 0].tolist()
        slots[next(at for at in plain if at not in compared)] = 1

    monkeypatch.setattr(op_check, "run_edit", wrong(edit_one_more))
    with pytest.raises(CanaryError, match="changes tokens that bear no mask"):
        check_op(table(), masks(), (tokens,), torch.float32)


def test_ranks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TopK SAE whose op does not rank is found."""

    def unranked(args: dict[str, Any]) -> None:
        args["topk"] = 96

    monkeypatch.setattr(op_check, "run_edit", wrong(unranked))
    with pytest.raises(CanaryError, match="wrong on this device"):
        check_op(table(**KINDS["topk"]), masks(), SIZES, torch.float32)


@pytest.mark.parametrize("first", range(0, 96, 2))
def test_masks_of_a_single_row_pass(first: int) -> None:
    """Half of the tokens fire, few bear the mask: whichever are drawn, it starts."""
    edits = {n: SiteEdit.uniform([first + i], gamma=0.0) for i, n in enumerate("ab")}
    found = Catalogue(
        [Concept(name=n, domain="d", edits={SITE: e}) for n, e in edits.items()]
    )
    one = SiteTable(random_sae(5, D_MODEL), found, SITE, 4, 1)
    pair = [Mask.of([(name, 1.0)], "d") for name in "ab"]
    check_op(one, pair, (*SIZES, 4, 5, 9, 17, 33), torch.float32)


def test_rows_that_are_lost_are_found() -> None:
    """Memory that came back empty edits nothing, which the check says."""
    one = table()
    one.W_dec_rows.zero_()
    assert one.checksum() != one.loaded_checksum
    with pytest.raises(CanaryError, match="nothing to edit"):
        check_op(one, masks(), SIZES, torch.float32)


@pytest.mark.parametrize(
    ("room", "names"),
    [(100, ("a", "b")), (40, ("a", "b")), (30, ("b", "c")), (3, ("c",))],
)
def test_masks_of_several_blocks_are_compared(
    room: int, names: tuple[str, ...]
) -> None:
    """Concepts together, where none is as long and a request may ask for them."""
    site = "decoder.1"
    latents = {"a": range(20), "b": range(20, 40), "c": range(40, 43)}
    if room < 20:
        del latents["a"], latents["b"]
    catalogue = Catalogue(
        Concept(name=name, domain="d", edits={site: SiteEdit.uniform(rows)})
        for name, rows in latents.items()
    )
    runtime: Any = SimpleNamespace(
        bundle=SimpleNamespace(catalogue=catalogue, digest="digest"),
        tables={site: SimpleNamespace(max_latents=room)},
    )
    assert canary._long_mask(runtime, site).names() == names
