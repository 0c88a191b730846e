# SPDX-License-Identifier: Apache-2.0
"""Slots of a step's tokens, and its plan, as they are brought to a device."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plugin.worker.doubles import begin
from tests.unlearning.test_slots import build_sae, build_table, mask
from vllm_sauce.concepts import TOKENS, Catalogue, Concept, SiteEdit
from vllm_sauce.plugin.worker.decoder_site import DecoderSite
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import MaskRows, SiteTable, site_rows
from vllm_sauce_kernels.masked_edit import plan_of


def slots_of(site: DecoderSite) -> list[int]:
    """Return the slots written for the tokens of a step."""
    found: list[int] = site.slot_of_token.tolist()
    return found


def site_of() -> DecoderSite:
    """Return a site for up to eight tokens with two slots."""
    return DecoderSite(build_table(), 8)


def test_spans_follow_the_batch_and_shrink_with_it() -> None:
    site = site_of()
    site.set_spans([mask("dog"), None, mask("cat")], [2, 1, 3])
    assert slots_of(site) == [0, 0, -1, 1, 1, 1, -1, -1]
    site.set_spans([None, mask("cat")], [1, 1])
    assert slots_of(site) == [-1, 1, -1, -1, -1, -1, -1, -1]
    site.set_spans([None], [1])
    assert slots_of(site) == [-1] * 8


def test_a_repeated_step_is_not_written_again() -> None:
    """Decoding repeats itself: what was written must still be there, and is."""
    site = site_of()
    step = ([mask("dog"), None], [1, 1])
    site.set_spans(*step)
    site.slot_of_token[0] = 1  # would be overwritten
    before = site.slot_of_token.clone()
    site.set_spans(*step)
    assert torch.equal(site.slot_of_token, before)


def test_a_step_is_written_again_after_anything_else() -> None:
    """Cleared, reset, another order, another count: never taken for the same step."""
    site = site_of()
    dog, cat = mask("dog"), mask("cat")
    site.set_spans([dog, cat], [1, 2])
    site.clear()
    assert slots_of(site) == [-1] * 8
    site.set_spans([dog, cat], [1, 2])
    assert slots_of(site)[:3] == [0, 1, 1]
    site.set_spans([cat, dog], [1, 2])
    assert slots_of(site)[:3] == [1, 0, 0]
    site.set_spans([cat, dog], [2, 1])
    assert slots_of(site)[:3] == [1, 1, 0]
    site.table.reset()
    site.set_spans([cat, dog], [2, 1])
    assert slots_of(site)[:3] == [0, 0, 1]
    assert int(site.table.mask_len[0]) > 0


class Writes(TorchDispatchMode):
    """Notes what is copied into a tensor, and counts all else that changes it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.memory = tensor.untyped_storage().data_ptr()
        self.copied: list[torch.Tensor] = []
        self.others = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        written = func._schema.is_mutable and isinstance(args[0], torch.Tensor)
        if written and args[0].untyped_storage().data_ptr() == self.memory:
            if func is torch.ops.aten.copy_.default:
                self.copied.append(args[1])
            else:
                self.others += 1
        return func(*args, **(kwargs or {}))


def test_a_changed_step_is_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots and plan together; none where nothing changed, or nobody bears a mask."""
    monkeypatch.setenv("VLLM_SAUCE_KERNEL", "triton")
    site = site_of()
    assert site.plan is not None
    dog, cat = mask("dog"), mask("cat")
    seen = []
    with Writes(site.slot_of_token) as writes:
        for step in (
            ([None, None], [1, 2]),
            ([dog, None], [1, 2]),
            ([dog, None], [1, 2]),
            ([cat, dog], [3, 1]),
            ([None], [4]),
            ([None], [3]),
        ):
            site.set_spans(*step)
            seen.append(len(writes.copied))
    assert seen == [0, 1, 1, 2, 3, 3]
    assert writes.others == 0
    # A copy may be under way when the next step is written: each has its own memory.
    assert [values[:4].tolist() for values in writes.copied] == [
        [0, -1, -1, -1],
        [1, 1, 1, 0],
        [-1, -1, -1, -1],
    ]
    assert not site.plan.any()


@pytest.mark.parametrize("room", [7, 8])
def test_what_is_copied_is_the_steps_plan(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Of those tokens, at an address that kernels may read 16 bytes from at once."""
    monkeypatch.setenv("VLLM_SAUCE_KERNEL", "triton")
    site = DecoderSite(build_table(), room)
    site.set_spans([mask("dog"), None, mask("cat")], [2, 1, 3])
    assert site.plan is not None and site.plan.data_ptr() % 16 == 0
    assert len(site.slot_of_token) == room
    want = plan_of(site.slot_of_token, site.table.mask_len)
    assert torch.equal(site.plan, want) and want[0] == 2


def test_the_callers_lists_may_change_afterwards() -> None:
    """A runner that reuses its lists does not make an old step look like the new."""
    site = site_of()
    masks, counts = [mask("dog")], [1]
    site.set_spans(masks, counts)
    masks[0] = mask("cat")
    counts[0] = 2
    site.set_spans(masks, counts)
    assert slots_of(site)[:3] == [1, 1, -1]


def test_more_tokens_than_there_is_room_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would be written over the plan."""
    monkeypatch.setenv("VLLM_SAUCE_KERNEL", "triton")
    with pytest.raises(ValueError, match="room for 8 tokens, got 9"):
        site_of().set_spans([mask("dog")], [9])


class Traffic:
    """Requests that begin, go on in random steps, wait, and end."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.running: dict[str, list[Any]] = {}
        """Of each: mask, tokens of its prompt, the next position."""
        self.begun = 0

    def begin(self, runtime: SauceRuntime, masks: Sequence[Mask | None]) -> None:
        """Let one begin, or one that runs begin again."""
        if self.running and self.rng.random() < 0.1:
            name = self.rng.choice(list(self.running))
        else:
            name, self.begun = str(self.begun), self.begun + 1
        one, length = self.rng.choice(masks), self.rng.randint(1, 5)
        self.running[name] = [one, length, 0]
        begin(runtime, name, one, length)

    def step(self, most: int) -> list[tuple[str, int, int]]:
        """Return a batch: names, first positions, numbers of tokens."""
        names = self.rng.sample(
            list(self.running), k=self.rng.randint(0, min(most, len(self.running)))
        )
        batch = []
        for name in names:
            _, length, at = self.running[name]
            generates = at >= length and self.rng.random() < 0.9
            count = 1 if generates else self.rng.randint(1, 6)
            batch.append((name, at, count))
            self.running[name][2] += count
        return batch

    def tokens(self, batch: list[tuple[str, int, int]]) -> Iterator[tuple[Any, str]]:
        """Yield the mask and the kind of each token."""
        for name, start, count in batch:
            one, length, _ = self.running[name]
            for at in range(start, start + count):
                kind = "sink" if at == 0 else "prompt" if at < length else "generated"
                yield one, kind


@pytest.mark.parametrize("seed", range(8))
def test_every_token_of_any_traffic_has_its_masks_rows(seed: int) -> None:
    """With more masks than slots, so that masks come and go between two steps."""
    site = "decoder.1"
    where = {
        "dog": ("prompt", "generated"),
        "cat": ("generated",),
        "red": ("prompt",),
        "sky": TOKENS,
        "sea": ("sink",),
        "sun": ("generated", "prompt"),
    }
    catalogue = Catalogue(
        Concept(
            name=name,
            domain="d",
            edits={site: replace(SiteEdit.uniform([number]), tokens=tokens)},
        )
        for number, (name, tokens) in enumerate(where.items())
    )
    most = 3
    slots = most * catalogue.token_groups(site)
    table = SiteTable(build_sae(), catalogue, site, slots, 4)
    runtime = SauceRuntime(cast(Any, None), {site: table}, 64)
    runtime.proven = True
    traffic, evictions = Traffic(seed), 0
    masks = [None] + [
        mask(*names, strength=strength)
        for names in (*zip(where), ("dog", "sky"), ("cat", "red", "sun"))
        for strength in (0.5, 1.0, 2.0)
    ]
    for _ in range(300):
        while len(traffic.running) < 6:
            traffic.begin(runtime, masks)
        batch = traffic.step(most)
        generation = table.generation
        runtime.tell_step(
            [name for name, *_ in batch],
            np.array([start for _, start, _ in batch], np.int64),
            np.array([count for *_, count in batch], np.int64),
        )
        evictions += table.generation - generation
        written = slots_of(runtime.decoder[site])
        expected = list(traffic.tokens(batch))
        assert set(written[len(expected) :]) <= {-1}
        for slot, (one, kind) in zip(written, expected, strict=False):
            part = None if one is None else one.at_tokens(catalogue, site, kind)
            rows = MaskRows() if part is None else site_rows(part, catalogue, site)
            held = slice(0 if slot < 0 else int(table.slot_len[slot]))
            latents = [
                table.pool_latents[row] for row in table.mask_latents[slot, held]
            ]
            assert (slot < 0) == (part is None)
            assert latents == [*rows.latents]
            assert table.mask_scale[slot, held].tolist() == [*rows.scale]
        if traffic.running and traffic.rng.random() < 0.3:
            ended = traffic.rng.choice(list(traffic.running))
            del traffic.running[ended]
            runtime.remove_request(ended)
    assert evictions > 10
