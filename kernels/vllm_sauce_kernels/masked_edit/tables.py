# SPDX-License-Identifier: Apache-2.0
"""What is known of a site's tables from the call before: they hardly ever change.

On a CPU a decode step is short, and checking eleven tensors again costs more than
editing sixteen tokens. A call whose tables are the very same tensors at the same
addresses as in an earlier call needs neither the checks nor new array views.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

KEPT = 8
"""Sites remembered; the oldest is dropped, with its references."""


class Remembered:
    """The tables of one site."""

    def __init__(self, tensors: tuple[Tensor, ...], ranked: bool) -> None:
        self.ranked = ranked
        # References, so that no other tensor can take over an id.
        self.tensors = tensors
        self.pointers = [tensor.data_ptr() for tensor in tensors]
        self.views: Any = None
        """What a form derived from them."""

    def same(self, tensors: tuple[Tensor, ...], ranked: bool) -> bool:
        """Return whether these are the same tensors, their memory in place."""
        if ranked != self.ranked:
            return False
        for mine, pointer, other in zip(
            self.tensors, self.pointers, tensors, strict=True
        ):
            if mine is not other or pointer != other.data_ptr():
                return False
        return True


_remembered: OrderedDict[int, Remembered] = OrderedDict()


def remember(
    tensors: tuple[Tensor, ...], ranked: bool, check: Callable[[], None]
) -> Remembered:
    """Return what is known of some tables; checks them the first time.

    Raises: what ``check`` raises
    """
    found = _remembered.get(id(tensors[0]))
    if found is not None and found.same(tensors, ranked):
        return found
    check()
    found = Remembered(tensors, ranked)
    _remembered[id(tensors[0])] = found
    _remembered.move_to_end(id(tensors[0]))
    while len(_remembered) > KEPT:
        _remembered.popitem(last=False)
    return found
