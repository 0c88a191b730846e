# SPDX-License-Identifier: Apache-2.0
"""Stands where an edit or a tap does; what a runner told is the point here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from vllm_sauce.plugin.sites.action import SiteAction
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.sites.tokens import PromptTokens

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
        self,
        labels: Sequence[Any],
        prompts: Sequence[PromptTokens | None],
        starts: Sequence[int],
        num_tokens: Sequence[int],
    ) -> None:
        assert [one is not None for one in labels] == [
            one is not None for one in prompts
        ]
        self.notes.append((list(labels), list(starts), list(num_tokens)))

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
