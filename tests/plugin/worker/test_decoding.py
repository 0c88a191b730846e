# SPDX-License-Identifier: Apache-2.0
"""A step that only goes on is not looked at, and whatever came between is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from tests.plugin.worker.doubles import begin
from tests.plugin.worker.test_decoder_site import slots_of
from tests.unlearning.test_slots import build_table, mask
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce.unlearning.mask import Mask


class Decoding:
    """Two masked requests and a plain one, which decode."""

    def __init__(self) -> None:
        sites = {f"decoder.{i}": build_table() for i in (1, 2)}
        self.runtime = SauceRuntime(cast(Any, None), sites, 16)
        self.runtime.proven = True
        for name in ("dog", "cat", "plain"):
            self.begin(name, None if name == "plain" else mask(name))
        self.tell(9, 9, 9)

    def begin(self, name: str, of: Mask | None, length: int = 3) -> None:
        """Let a request with a prompt of some tokens begin."""
        begin(self.runtime, name, of, length)

    def tell(
        self,
        *starts: int,
        counts: Sequence[int] = (1, 1, 1),
        names: Sequence[str] = ("dog", "cat", "plain"),
    ) -> None:
        """Tell of a step."""
        self.runtime.tell_step(list(names), np.array(starts), np.array(counts))

    def slots(self) -> list[int]:
        """Return the slots of the first four tokens, at every site."""
        one, other = (slots_of(site) for site in self.runtime.decoder.values())
        assert one == other
        return one[:4]


def test_a_step_that_only_goes_on_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoding = Decoding()
    assert decoding.slots() == [0, 1, -1, -1]
    begin_step = decoding.runtime.begin_step
    looked: list[int] = []

    def look(*step: Any) -> None:
        looked.append(1)
        begin_step(*step)

    monkeypatch.setattr(decoding.runtime, "begin_step", look)
    for start in (10, 11, 12):
        decoding.tell(start, start, start)
        assert not looked and decoding.slots() == [0, 1, -1, -1]
    decoding.tell(13, 13, 13, counts=(2, 1, 1))
    assert looked and decoding.slots() == [0, 0, 1, -1]


def forget_all(decoding: Decoding) -> None:
    for site in decoding.runtime.decoder.values():
        site.table.reset()
        site.table.assign([mask("cat")])


def prove_anew(decoding: Decoding) -> None:
    decoding.runtime.clear_step()
    decoding.runtime.proven = True


def end_and_begin(decoding: Decoding, name: str, of: str, length: int = 3) -> None:
    decoding.runtime.remove_request(name)
    decoding.begin(name, mask(of), length)


@pytest.mark.parametrize(
    ("between", "starts", "slots"),
    [
        # A pass of dummies, one of other requests, one of none.
        (lambda d: d.runtime.clear_step(), (10, 10, 10), [0, 1, -1, -1]),
        (
            lambda d: d.tell(10, counts=[1], names=["plain"]),
            (10, 10, 10),
            [0, 1, -1, -1],
        ),
        (lambda d: d.tell(counts=[], names=[]), (10, 10, 10), [0, 1, -1, -1]),
        (
            lambda d: d.tell(10, 10, 10, names=["cat", "dog", "plain"]),
            (11, 11, 11),
            [0, 1, -1, -1],
        ),
        # The masks' places are others'.
        (forget_all, (10, 10, 10), [1, 0, -1, -1]),
        # Preempted and begun again: a token of its prompt.
        (lambda d: None, (0, 10, 10), [-1, 1, -1, -1]),
        # The same, and another has gone on by as much.
        (lambda d: None, (0, 10, 20), [-1, 1, -1, -1]),
        # Another request of the same name.
        (lambda d: end_and_begin(d, "dog", "cat"), (10, 10, 10), [1, 1, -1, -1]),
        # A session's next prompt: told of anew, and never of an end.
        (lambda d: d.begin("dog", mask("cat")), (10, 10, 10), [1, 1, -1, -1]),
        (lambda d: end_and_begin(d, "dog", "dog", 20), (10, 10, 10), [0, 1, -1, -1]),
        (lambda d: end_and_begin(d, "plain", "cat"), (10, 10, 10), [0, 1, 1, -1]),
        # Proven anew, whatever that did to the buffers.
        (
            prove_anew,
            (10, 10, 10),
            [0, 1, -1, -1],
        ),
    ],
)
def test_whatever_came_between_is_seen(
    between: Callable[[Decoding], Any], starts: tuple[int, ...], slots: list[int]
) -> None:
    """The same batch as before, but that what was written for it may not be there."""
    decoding = Decoding()
    between(decoding)
    decoding.tell(*starts)
    assert decoding.slots() == slots


def test_the_same_requests_in_another_order_are_looked_at() -> None:
    decoding = Decoding()
    decoding.tell(10, 10, 10, names=["plain", "dog", "cat"])
    assert decoding.slots() == [-1, 0, 1, -1]


def test_what_goes_on_stops_when_the_proof_is_taken_back() -> None:
    decoding = Decoding()
    decoding.runtime.proven = False
    with pytest.raises(CanaryError, match="proof"):
        decoding.tell(10, 10, 10)
    decoding.runtime.remove_request("dog")
    with pytest.raises(CanaryError, match="'dog' is in a batch and was never told of"):
        decoding.tell(10, 10, 10)


def test_nobody_who_goes_on_is_unknown() -> None:
    """Also where no request asks for anything."""
    decoding = Decoding()
    for name in ("dog", "cat"):
        decoding.runtime.remove_request(name)
    decoding.tell(10, counts=[1], names=["plain"])
    decoding.tell(11, counts=[1], names=["plain"])
    assert decoding.slots() == [-1] * 4
    decoding.runtime.remove_request("plain")
    with pytest.raises(CanaryError, match="'plain' is in a batch and was never told"):
        decoding.tell(12, counts=[1], names=["plain"])
