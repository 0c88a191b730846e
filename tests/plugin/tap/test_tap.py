# SPDX-License-Identifier: Apache-2.0
"""The tap alone: steps in, whole samples out."""

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.activations.shards import Role
from vllm_sauce.errors import ActivationsError, CanaryError
from vllm_sauce.plugin.tap.tap import ActivationTap, Finished

SITE = "decoder.0"


@dataclass(frozen=True)
class Span:
    """Tokens of a sample in a step, None for a request that is not harvested."""

    sample: int | None
    start: int
    count: int


def finished(sample, prompt, count):
    """A sample whose tokens have ids of their own."""
    return Finished(sample, prompt, [1000 * sample + at for at in range(count)])


def picture(identifier, offset, length, is_embed=None):
    """Return what vLLM says of a picture and where its tokens lie."""
    at = SimpleNamespace(offset=offset, length=length, is_embed=is_embed)
    return SimpleNamespace(identifier=identifier, mm_position=at)


def begin_step(tap, spans):
    """Tell of a step as a runner does."""
    names = [str(number) for number in range(len(spans))]
    tap.live = {name: s.sample for name, s in zip(names, spans, strict=True)}
    starts, counts = [s.start for s in spans], [s.count for s in spans]
    tap.begin_step(names, np.array(starts), np.array(counts))


class Kept:
    """Stands where the shard writer does; the disk is not the point here."""

    def __init__(self):
        self.samples = {}
        self.pictures = []

    def add(self, sample, rows, images=()):
        assert sample not in self.samples
        self.samples[sample] = rows
        self.pictures.extend(images)


def tapping(*sites, written=()):
    tap, kept = ActivationTap(sites, torch.float32), Kept()
    tap.begin(cast(Any, kept), written)
    return tap, kept


def row(sample, position):
    """Whose activation it is can be read off its value."""
    return torch.tensor([100.0 * sample + position, 0.5])


def step(tap, spans, padding=0):
    """Run one forward pass; half of the stream is in the residual."""
    begin_step(tap, spans)
    rows = [row(s.sample or 0, s.start + i) for s in spans for i in range(s.count)]
    x = torch.cat([torch.stack(rows), torch.full((padding, 2), torch.nan)])
    tap.take(SITE, x * 0.25, x * 0.75)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_chunking_and_preemption_gives_each_token_once(data):
    tap, kept = tapping(SITE)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    at = [0] * len(lengths)
    for sample in range(len(lengths)):
        tap.begin_request(sample, [])
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    while any(a < n for a, n in zip(at, lengths, strict=True)):
        spans = []
        for sample, length in enumerate(lengths):
            if 0 < at[sample] < length and rng.random() < 0.2:
                at[sample] = 0  # preempted: all is computed again
            count = rng.randint(0, min(length - at[sample], 4))
            if count:
                spans.append(Span(sample, at[sample], count))
                at[sample] += count
        if spans:
            rng.shuffle(spans)
            step(tap, spans, padding=rng.randint(0, 3))
    tap.finish([finished(s, n, n) for s, n in enumerate(lengths)])
    for sample, length in enumerate(lengths):
        rows = kept.samples[sample][SITE]
        want = torch.stack([row(sample, i) for i in range(length)])
        assert torch.equal(rows.activations, want)
        assert rows.position.tolist() == list(range(length))
        assert set(rows.sample.tolist()) == {sample}
        assert rows.token.tolist() == [1000 * sample + i for i in range(length)]


def test_roles_are_the_places_of_tokens():
    tap, kept = tapping(SITE)
    odd = torch.tensor([True, False, True])
    pictures = [picture("a", 1, 2), picture("b", 4, 3, odd)]
    tap.begin_request(7, pictures)
    step(tap, [Span(7, 0, 10)])
    tap.finish([finished(7, 8, 10)])
    image, text, generated = Role.IMAGE, Role.TEXT, Role.GENERATED
    assert kept.samples[7][SITE].role.tolist() == [
        text, image, image, text, image, text, image, text, generated, generated
    ]  # fmt: skip


def test_a_token_that_never_passed_is_an_error():
    tap, _ = tapping(SITE)
    tap.begin_request(0, [])
    step(tap, [Span(0, 0, 3)])
    step(tap, [Span(0, 4, 2)])
    with pytest.raises(ActivationsError, match=r"1 of 6 tokens .* never passed"):
        tap.finish([finished(0, 6, 6)])


def test_dummy_passes_and_strangers_leave_nothing():
    tap, kept = tapping(SITE)
    tap.begin_request(1, [])
    step(tap, [Span(None, 0, 2), Span(1, 0, 2)])
    begin_step(tap, [Span(1, 0, 2)])
    tap.clear_step()
    tap.take(SITE, torch.full((2, 2), torch.nan), torch.zeros(2, 2))
    tap.finish([finished(1, 2, 2)])
    assert kept.samples[1][SITE].activations.tolist() == [[100.0, 0.5], [101.0, 0.5]]


def test_what_is_kept_is_a_copy():
    tap, kept = tapping(SITE)
    tap.begin_request(0, [])
    begin_step(tap, [Span(0, 0, 2)])
    x, residual = torch.ones(2, 2), torch.zeros(2, 2)
    tap.take(SITE, x, residual)
    x.zero_()
    tap.finish([finished(0, 2, 2)])
    assert kept.samples[0][SITE].activations.sum() == 4


def show(tap: ActivationTap, name: str, *parts: torch.Tensor) -> None:
    """Encode a picture, its features in parts."""
    assert tap.announced is not None
    with tap.announced.encoding([name]):
        for x in parts:
            assert tap.take_picture("vision", x) is x


def test_a_picture_is_written_once():
    tap, kept = tapping("vision", written=["old"])
    for sample, names in enumerate((["a", "old"], ["a"], ["b", "b"])):
        spans = [picture(name, i, 1) for i, name in enumerate(names)]
        tap.begin_request(sample, spans)
    for name, i in (("a", 1.0), ("old", 2.0), ("b", 3.0)):
        show(tap, name, torch.full((1, 2, 3), i))
    tap.finish([finished(s, 2, 2) for s in range(3)])
    assert kept.pictures == ["a", "b"]
    assert set(kept.samples[0]) == {"vision"}
    assert kept.samples[0]["vision"].activations.tolist() == [[1.0] * 3] * 2
    assert kept.samples[1] == {}
    assert kept.samples[2]["vision"].position.tolist() == [0, 1]


def test_a_picture_that_goes_around_the_site_is_an_error():
    tap, _ = tapping("vision")
    tap.take_picture("vision", torch.zeros(4, 2, 3))  # profiling: none was announced
    with pytest.raises(CanaryError, match="without passing vision"):
        show(tap, "a")
    tap.begin_request(0, [picture("a", 0, 1)])
    with pytest.raises(ActivationsError, match="without passing the vision site"):
        tap.finish([finished(0, 1, 1)])


@pytest.mark.parametrize("shape", [(1, 6, 3), (2, 3, 3), (6, 3)])
def test_all_rows_of_a_picture_are_its_own(shape):
    """Towers that cut a picture into tiles, or hand on rows without a batch."""
    tap, kept = tapping("vision")
    tap.begin_request(0, [picture("a", 0, 1)])
    x = torch.arange(18.0).reshape(shape)
    # Encoded before, and thrown out of the encoder cache.
    show(tap, "a", x + 1)
    show(tap, "a", *x.split(1) if len(shape) == 3 else (x,))
    tap.finish([finished(0, 1, 1)])
    rows = kept.samples[0]["vision"].activations
    assert torch.equal(rows, x.reshape(6, 3))


def test_a_new_run_forgets_the_last():
    tap, _ = tapping(SITE)
    tap.begin_request(0, [])
    step(tap, [Span(0, 0, 2)])
    kept = Kept()
    tap.begin(cast(Any, kept))
    step(tap, [Span(0, 2, 1)])  # its request is still in the engine
    tap.begin_request(0, [])
    step(tap, [Span(0, 0, 1)])
    tap.finish([finished(0, 1, 1)])
    assert len(kept.samples[0][SITE].activations) == 1
