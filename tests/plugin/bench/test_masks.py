# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's requests ask to forget."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.bench.masks import Wish, draw, masks_of, may_be_asked
from vllm_sauce.plugin.frontend.admission import Admission


def test_the_flag_is_read() -> None:
    assert Wish.parse("dog, red,") == Wish(("dog", "red"))
    assert Wish.parse("random:64") == Wish(num_masks=64)


@pytest.mark.parametrize(
    "text", ["", ",", "random:", "random:0", "random:-1", "random:x", "random:²"]
)
def test_what_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="random:N"):
        Wish.parse(text)


@pytest.mark.parametrize(("num_masks", "size"), [(1, 1), (5, 1), (6, 2), (10, 2)])
def test_masks_are_different_and_as_small_as_will_do(num_masks: int, size: int) -> None:
    masks = draw("abcde", num_masks, seed=0)
    assert len(set(map(frozenset, masks))) == num_masks
    assert {len(set(names)) for names in masks} == {size}
    assert masks == draw("abcde", num_masks, seed=0)


def test_the_seed_draws_others() -> None:
    assert draw("abcde", 3, seed=0) != draw("abcde", 3, seed=1)


@pytest.mark.parametrize(("names", "most"), [("abcde", 10), ("a", 1), ("", 0)])
def test_more_masks_than_there_are_is_said(names: str, most: int) -> None:
    with pytest.raises(ConfigError, match=f"at most {most} masks"):
        draw(names, most + 1, seed=0)


def test_masks_are_of_what_acts_and_may_be_asked(admission: Admission) -> None:
    """No concept that only pictures have, and none that is forgotten anyway."""
    catalogue, config = admission.bundle.catalogue, admission.config
    assert may_be_asked(catalogue, config) == ("both", "read")
    assert may_be_asked(catalogue, replace(config, forget=("read",))) == ("both",)
    decoder = ("both", "read")
    assert may_be_asked(catalogue, replace(config, forget=decoder)) == ("seen",)
    strict = replace(config, forget=decoder, require_decoder=True)
    assert may_be_asked(catalogue, strict) == ()


def test_a_weak_concept_is_drawn_only_where_it_is_allowed(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, config = admission.bundle.catalogue, admission.config
    monkeypatch.setattr(type(catalogue), "weak", lambda self: ("read",))
    assert may_be_asked(catalogue, config) == ("both",)
    allowed = replace(config, allow_weak=("read",))
    assert may_be_asked(catalogue, allowed) == ("both", "read")


def test_admission_would_take_them(admission: Admission) -> None:
    drawn = masks_of(Wish(num_masks=2), admission, seed=0)
    assert Counter(drawn) == Counter([("both",), ("read",)])
    assert masks_of(Wish(("seen", "read")), admission, 0) == (("seen", "read"),)
    with pytest.raises(
        ConfigError, match="unknown concept 'raed': did you mean 'read'"
    ):
        masks_of(Wish(("seen", "raed")), admission, 0)
