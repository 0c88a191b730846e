# SPDX-License-Identifier: Apache-2.0
"""The slots of a step's tokens, without an engine."""

from __future__ import annotations

import torch

from tests.unlearning.test_slots import build_table, mask
from vllm_sauce.plugin.worker.runtime import DecoderSite


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
    site.table.assign = None  # type: ignore[assignment, method-assign]
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


def test_the_callers_lists_may_change_afterwards() -> None:
    """A runner that reuses its lists does not make an old step look like the new."""
    site = site_of()
    masks, counts = [mask("dog")], [1]
    site.set_spans(masks, counts)
    masks[0] = mask("cat")
    counts[0] = 2
    site.set_spans(masks, counts)
    assert slots_of(site)[:3] == [1, 1, -1]
