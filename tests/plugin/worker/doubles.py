# SPDX-License-Identifier: Apache-2.0
"""Stands where an edit or a tap does; what a runner told is the point here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm_sauce.plugin.sites.action import SiteAction
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.unlearning.mask import Checked, Mask

PICTURE = SimpleNamespace(
    identifier="p",
    modality="image",
    mm_position=SimpleNamespace(offset=1, length=2, is_embed=None),
)
"""A request's picture, as vLLM tells of it."""
FOUR_TOKENS = [("sink", 1), ("image", 2), ("prompt", 1), ("generated", 1)]
"""The kinds of a prompt of four tokens with that picture, and of one more."""


class Told(SiteAction):
    """Takes notes. A request's label is what stands under "label"."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Any] = []
        self.announced = Announced(["vision"])

    def label_of(self, extra_args: Mapping[str, Any] | None) -> Any:
        return (extra_args or {}).get("label")

    def begin_request(self, label: Any, mm_features: Any) -> None:
        self.notes.append(("begins", label, list(mm_features)))

    def begin_step(
        self, req_ids: Sequence[str], starts: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        labels = [self.live.get(req_id) for req_id in req_ids]
        assert [one is not None for one in labels] == [
            req_id in self.prompts for req_id in req_ids
        ]
        self.notes.append((labels, starts.tolist(), num_tokens.tolist()))

    def clear_step(self) -> None:
        self.notes.append("cleared")

    def picture_labels(
        self, identifiers: Sequence[str], req_ids: Sequence[str]
    ) -> list[Any]:
        self.notes.append((list(identifiers), list(req_ids)))
        return [self.live[req_id] for req_id in req_ids]

    def at_decoder(self, site: str, layer: Any) -> Any:
        return lambda *seen: self.notes.append((site, layer, seen))

    def at_vision(self, site: str, connector: Any) -> Any:
        return lambda features: features + 1


def begin(
    action: SiteAction,
    name: str,
    mask: Mask | None,
    length: int = 3,
    features: Sequence[Any] = (),
) -> None:
    """Let a request begin, as the engine core has let it in.

    ``length``, ``features``: of its prompt
    """
    params = SimpleNamespace(extra_args={"sauce": Checked(mask)})
    request = SimpleNamespace(prompt_token_ids=[0] * length, mm_features=list(features))
    action.add_request(name, params, request)


def step_of(
    runtime: SiteAction,
    masks: Sequence[Mask | None],
    starts: Sequence[int],
    counts: Sequence[int],
    **prompt: Any,
) -> None:
    """Let a request begin under each mask, and tell of a step of them all."""
    names = [str(number) for number in range(len(masks))]
    for name, mask in zip(names, masks, strict=True):
        begin(runtime, name, mask, **prompt)
    runtime.tell_step(names, np.array(starts), np.array(counts))
