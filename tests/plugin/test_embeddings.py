# SPDX-License-Identifier: Apache-2.0
"""Image embeddings go around the vision tower: nobody's mask may go with them.

An attacker needs no mask. In one step: a plain request with embeddings, a masked one
with a picture, a plain one with a picture; bound by order, the first two would have
changed places.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugin.support import Reply, cold, reply_of
from tests.soak.inputs import Inputs
from tests.soak.universe import Request
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin.sites.encoder_batches import refuse_unseen


def asked(llm: Any, *requests: Request) -> list[Reply]:
    """Send requests as one batch, as engine inputs made by hand."""
    inputs, engine = Inputs(llm), llm.llm_engine
    for number, request in enumerate(requests):
        engine.add_request(str(number), inputs.prompt(request), request.params(4))
    replies: dict[int, Reply] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                number = int(output.request_id.partition("-")[0])
                replies[number] = reply_of(output)
    return [replies[number] for number in range(len(requests))]


def test_embeddings_shift_nobodys_mask(sauced: Any) -> None:
    """Each of a mixed batch is answered as alone, in every order."""
    embeds, masked = Request(("e0",), 0), Request(("p0",), 0, ("seen",))
    plain, read = Request(("p1",), 0), Request(("e1", "p2"), 0, ("read",))
    batch = [embeds, masked, plain, read]
    alone = []
    for request in batch:
        cold(sauced)
        alone += asked(sauced, request)
    for turn in range(len(batch)):
        order = [(i + turn) % len(batch) for i in range(len(batch))]
        cold(sauced)
        together = asked(sauced, *(batch[i] for i in order))
        for i, reply in zip(order, together, strict=True):
            assert reply.close(alone[i]), batch[i]
        # What was cached on the way is right, too.
        for i, reply in enumerate(asked(sauced, *batch)):
            assert reply.close(alone[i]), batch[i]


@pytest.mark.parametrize("concept", ["seen", "both"])
def test_embeddings_under_a_vision_mask_are_refused(sauced: Any, concept: str) -> None:
    """Where their data is there, and where the engine core alone still holds it."""
    engine, inputs = sauced.llm_engine, Inputs(sauced)
    bad = Request(("p0", "e0"), 0, (concept,))
    with pytest.raises(InvalidRequestError, match="given as pixels"):
        engine.add_request("bad", inputs.prompt(bad), bad.params(2))
    plain = Request(("p0", "e0"), 0)
    prompt = inputs.prompt(plain)
    engine.add_request("plain", prompt, plain.params(2))
    inputs.sent(prompt)
    with pytest.raises(InvalidRequestError, match="given as pixels"):
        engine.add_request("bad", inputs.prompt(bad, cached=True), bad.params(2))
    answered = []
    while engine.has_unfinished_requests():
        answered += [out for out in engine.step() if out.finished]
    assert len(answered) == 1


@pytest.mark.parametrize(
    ("modality", "keys"),
    [
        ("image", ["image_embeds"]),
        ("image", ["image_embeds", "pixel_values"]),
        ("image", ["image_sizes"]),
        ("video", ["pixel_values_videos"]),
        ("audio", []),
    ],
)
def test_only_pixels_are_taken(modality: str, keys: list[str]) -> None:
    """Whatever their names: no data of another kind is a picture that can be edited."""
    feature = SimpleNamespace(modality=modality, data=dict.fromkeys(keys))
    with pytest.raises(InvalidRequestError, match="given as pixels"):
        refuse_unseen([feature])


@pytest.mark.parametrize(
    "keys", [["pixel_values"], ["image_sizes", "pixel_values"], []]
)
def test_pixels_are_taken(keys: list[str]) -> None:
    """Without data the engine core holds it, and looks."""
    refuse_unseen([SimpleNamespace(modality="image", data=dict.fromkeys(keys))])
