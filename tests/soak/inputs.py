# SPDX-License-Identifier: Apache-2.0
"""What ``LLMEngine.add_request`` takes for a request, embeddings included.

A client gets embeddings past vLLM's ``enable_mm_embeds`` by building the engine's input
itself: offline as here, over HTTP with ``/inference/v1/generate``.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.soak.universe import EMBEDS, Request, embeds, picture


def embeds_item(rows: torch.Tensor) -> Any:
    """Return what LLaVA takes instead of pixels."""
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalKwargsItem,
    )

    field = MultiModalBatchedField()
    return MultiModalKwargsItem(
        {"image_embeds": MultiModalFieldElem(data=rows, field=field)}
    )


class Inputs:
    """Makes engine inputs and remembers which embeddings the engine core holds."""

    def __init__(self, llm: Any) -> None:
        self._renderer = llm.renderer
        self._rendered: dict[tuple[tuple[str, ...], str], Any] = {}
        self.held: set[str] = set()
        """Hashes of hand-made items that the engine core has got."""

    def prompt(self, request: Request, *, cached: bool = False) -> Any:
        """Return a prompt; ``cached`` leaves out the data that the core holds."""
        if request.embeds:
            return self._by_hand(request, cached)
        if not request.pictures:
            return {"prompt": request.text}
        images = [picture(name) for name in request.pictures]
        return {"prompt": request.text, "multi_modal_data": {"image": images}}

    def sent(self, prompt: Any) -> None:
        """Note that a prompt came to the engine core."""
        if "mm_hashes" in prompt:
            self.held.update(prompt["mm_hashes"]["image"])

    def _by_hand(self, request: Request, cached: bool) -> Any:
        from vllm.inputs import mm_input
        from vllm.multimodal.inputs import MultiModalKwargsItems

        key = request.pictures, request.text
        if key not in self._rendered:
            self._rendered[key] = self._render(request)
        rendered, hashes, items = self._rendered[key]
        kept = [
            None if cached and name in self.held else item
            for name, item in zip(hashes, items, strict=True)
        ]
        return mm_input(
            prompt_token_ids=list(rendered["prompt_token_ids"]),
            mm_kwargs=MultiModalKwargsItems({"image": kept}),
            mm_hashes={"image": list(hashes)},
            mm_placeholders=rendered["mm_placeholders"],
        )

    def _render(self, request: Request) -> tuple[Any, list[str], list[Any]]:
        names = ["p0" if name in EMBEDS else name for name in request.pictures]
        images = [picture(name) for name in names]
        (rendered,) = self._renderer.render_cmpl(
            [{"prompt": request.text, "multi_modal_data": {"image": images}}],
            skip_mm_cache=True,
        )
        hashes = list(rendered["mm_hashes"]["image"])
        items = list(rendered["mm_kwargs"]["image"])
        for at, name in enumerate(request.pictures):
            if name in EMBEDS:
                hashes[at], items[at] = f"soak-{name}", embeds_item(embeds(name))
        return rendered, hashes, items
