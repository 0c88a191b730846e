# SPDX-License-Identifier: Apache-2.0
"""Checks results before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit import masked_edit_eager, masked_edit_ref

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Most difference of two results, in parts of what the edit changes.

bfloat16 rounds activations of order 1 by 0.002 each time; what is edited is about 0.1.
"""

Args = dict[str, Any]


class WrongResult(Exception):
    """A variant does not compute what it is compared with."""


def difference(got: Tensor, want: Tensor, before: Tensor) -> float:
    """Return how far a result is off, in parts of what the edit changes.

    Not in parts of the activations: an edit left out would hide in their rounding.
    Raises: WrongResult when the edit changes nothing, so that nothing is shown
    """
    got, want, before = (x.double().cpu() for x in (got, want, before))
    change = (want - before).norm().item()
    if not change > 0:
        raise WrongResult("the edit to compare with changes nothing")
    return (got - want).norm().item() / change


def verify(
    name: str, got: Tensor, want: Tensor, before: Tensor, tolerance: float
) -> float:
    """Return the difference of two results. Raises: WrongResult when it is too large"""
    found = difference(got, want, before)
    # Written so that NaN is too large.
    if not found <= tolerance:
        raise WrongResult(f"{name} is off by {found:.3g} of the edit")
    return found


def on_cpu(args: Args) -> Args:
    """Return copies of a call's arguments on the CPU."""
    return {k: v.cpu().clone() if isinstance(v, Tensor) else v for k, v in args.items()}


def verify_op(
    variants: Mapping[str, Callable[..., object]], args: Args, reference: bool
) -> None:
    """Check forms of the op on one batch against the definition, or its PyTorch form.

    Raises: WrongResult
    """
    want = on_cpu(args)
    before = want["hidden_states"].clone()
    (masked_edit_ref if reference else masked_edit_eager)(**want)
    for name, variant in variants.items():
        mutated = ("hidden_states", "edited_tokens")
        mine = {k: v.clone() if k in mutated else v for k, v in args.items()}
        variant(**mine)
        tolerance = TOLERANCE[before.dtype]
        verify(
            name, mine["hidden_states"], want["hidden_states"], before, tolerance / 2
        )
        if not torch.equal(mine["edited_tokens"].cpu(), want["edited_tokens"]):
            raise WrongResult(f"{name} counts other tokens as edited")
