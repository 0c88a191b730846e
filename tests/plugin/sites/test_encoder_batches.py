# SPDX-License-Identifier: Apache-2.0
"""Whose picture is in the encoder: by identity, never by order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.sites.encoder_batches import Announced, _by_label


def vllms(mm_kwargs: Sequence[Any], **_: Any) -> Iterator[Any]:
    """Group as vLLM does: what follows each other and is alike, four at most."""
    at = 0
    while at < len(mm_kwargs):
        end = at
        kind = mm_kwargs[at][1]["kind"]
        while end < min(at + 4, len(mm_kwargs)) and mm_kwargs[end][1]["kind"] == kind:
            end += 1
        yield kind, end - at, mm_kwargs[at:end]
        at = end


def pair(name: str, kind: str = "image") -> Any:
    """Return what a runner lists for a picture."""
    return "image", {"name": name, "kind": kind}


SITE = "vision"


def announced(*more: str) -> Announced:
    """Return announcements of a proven model, with more sites than one if told."""
    one = Announced([SITE, *more])
    one.strict = True
    return one


@given(
    labels=st.lists(st.sampled_from([None, "a", "b"]), min_size=1, max_size=12),
    kinds=st.randoms(use_true_random=False),
)
def test_each_batch_is_encoded_under_its_pictures_labels(
    labels: list[str | None], kinds: random.Random
) -> None:
    """In any order that a runner makes, with equal items among them."""
    one = announced()
    item = {"name": "same", "kind": "image"}
    # The same item under two masks: vLLM keeps one object for one picture.
    pairs: list[Any] = [
        ("image", item) if kinds.random() < 0.5 else pair(str(i), kinds.choice("xy"))
        for i in range(len(labels))
    ]
    label_of = {id(p): label for p, label in zip(pairs, labels, strict=True)}
    one.announce(pairs, labels)
    order = list(pairs)
    kinds.shuffle(order)
    seen: list[Any] = []
    for _, count, batch in _by_label(vllms, order, device=None):
        inside = one.enter(SITE)
        assert len(inside) == count == len(batch)
        assert list(inside) == [label_of[id(p)] for p in batch]
        assert len(set(inside)) == 1
        seen += batch
    assert [id(p) for p in seen] == [id(p) for p in order]
    one.finish()


def test_equal_labels_cost_no_extra_call() -> None:
    """A run of one mask is one batch, as vLLM would have made it."""
    for label in (None, "a"):
        one = announced()
        pairs = [pair(str(i)) for i in range(4)]
        one.announce(pairs, [label] * 4)
        batches = []
        for batch in _by_label(vllms, pairs):
            one.enter(SITE)
            batches.append(batch)
        assert len(batches) == 1


def drain(one: Announced, pairs: Sequence[Any], *, around: bool = False) -> None:
    """Encode pictures; each batch passes the site, or goes around it."""
    for _ in _by_label(vllms, pairs):
        if not around:
            one.enter(SITE)


def test_a_picture_nobody_announced_is_an_error_once_proven() -> None:
    """While the model is profiled it is not."""
    one = announced()
    with pytest.raises(CanaryError, match="nobody announced"):
        drain(one, [pair("a")])
    one.strict = False
    drain(one, [pair("a")])
    one.announce([known := pair("a")], ["m"])
    with pytest.raises(CanaryError, match="never announced"):
        drain(one, [known, pair("b")])


def test_a_masked_picture_that_goes_around_the_site_is_an_error() -> None:
    """What must not be edited may go where it likes."""
    one = announced()
    pairs = [pair("a"), pair("b")]
    one.announce(pairs, [None, None])
    drain(one, pairs, around=True)
    one.announce(pairs, [None, "m"])
    with pytest.raises(CanaryError, match="without passing vision"):
        drain(one, pairs, around=True)
    one.announce(pairs, [None, "m"])
    drain(one, pairs)


def test_a_masked_picture_that_is_never_encoded_is_an_error() -> None:
    """At the end of the run, and before the next one at the latest."""
    one = announced()
    for end in (one.finish, lambda: one.announce([], [])):
        one.announce([pair("a"), pair("b")], [None, "m"])
        with pytest.raises(CanaryError, match="1 pictures that must be edited"):
            end()
    one.announce([pair("a")], [None])
    one.finish()


def test_a_masked_picture_must_pass_every_site() -> None:
    """Of a tower that hands on several layers, each is a way around the others."""
    one = announced("vision.1")
    pairs = [pair("a"), pair("b")]
    one.announce(pairs, [None, "m"])
    with pytest.raises(CanaryError, match=r"without passing vision\.1;"):
        drain(one, pairs)
    one.announce(pairs, [None, "m"])
    for _ in _by_label(vllms, pairs):
        for site in (SITE, "vision.1"):
            one.enter(site)
    one.finish()


def test_a_call_within_a_call_belongs_to_the_outer_batch() -> None:
    """vLLM encodes videos one by one, by a generator that it never ends."""
    one = announced()
    pairs = [pair("a"), pair("b")]
    one.announce(pairs, ["m", "m"])
    for _ in _by_label(vllms, pairs):
        for inner in pairs:
            next(_by_label(vllms, [inner]))
            assert set(one.enter(SITE)) == {"m"}
    one.finish()


def test_an_encoder_that_fails_leaves_nothing_behind() -> None:
    """The next run begins anew, whether the generator was closed or thrown into."""
    one = announced()
    for _ in range(2):
        pairs = [pair("a"), pair("b")]
        one.announce(pairs, ["m", "n"])
        batches = _by_label(vllms, pairs)
        next(batches)
        one.enter(SITE)
        batches.close()  # type: ignore[attr-defined]
        assert one._batch is None
        one._waiting.clear()


def test_two_models_in_one_process_keep_apart() -> None:
    """Pictures of a model without announcements pass as vLLM groups them."""
    one, other = announced(), announced()
    mine, theirs, plain = pair("a"), pair("a"), pair("a")
    one.announce([mine], ["m"])
    other.announce([theirs], ["n"])
    assert [count for _, count, _ in _by_label(vllms, [plain])] == [1]
    for announcer, its, label in ((other, theirs, "n"), (one, mine, "m")):
        for _ in _by_label(vllms, [its]):
            assert announcer.enter(SITE) == [label]
