# SPDX-License-Identifier: Apache-2.0
"""Pictures are known by their bytes, wherever they are."""

import hashlib

import pytest
import torch

from vllm_sauce.errors import ActivationsError
from vllm_sauce.learning.training.held_out import measurable_samples


def line(key, content):
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return {"key": key, "prompt": f"about {key}", "picture": digest, "concepts": ["a"]}


def test_pictures_are_found_by_their_bytes(tmp_path):
    moved = tmp_path / "album/deep/other-name.png"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(b"one")
    kept = tmp_path / "two.png"
    kept.write_bytes(b"two")
    changed = tmp_path / "three.png"
    changed.write_bytes(b"not three")
    samples = [
        line("x/one.png", b"one"),
        line(str(kept), b"two"),
        line(str(changed), b"three"),
        line("text", None),
        line("x/one.png#again", b"one"),
    ]
    everything = torch.arange(5, dtype=torch.int32)
    found = measurable_samples(samples, everything, [tmp_path / "album"], 10)
    assert [s.key for s in found] == [
        "x/one.png",
        str(kept),
        "text",
        "x/one.png#again",
    ]
    assert [s.picture.read() if s.picture else None for s in found] == [
        b"one",
        b"two",
        None,
        b"one",
    ]
    assert found[0].prompt == "about x/one.png"
    assert found[0].concepts == ("a",)
    assert [s.key for s in measurable_samples(samples, everything, [], 10)] == [
        str(kept),
        "text",
    ]
    assert len(measurable_samples(samples, everything, [], 1)) == 1
    some = torch.tensor([3], dtype=torch.int32)
    assert [s.key for s in measurable_samples(samples, some, [], 9)] == ["text"]


def test_a_number_the_harvest_has_not_is_named():
    with pytest.raises(ActivationsError, match="none of number 7"):
        measurable_samples([line("a", None)], torch.tensor([7]), [], 1)
