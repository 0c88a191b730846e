# SPDX-License-Identifier: Apache-2.0
"""Refuse HTTP requests whose sauce fields vLLM would drop on the way to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin import compat
from vllm_sauce.unlearning import wire

_installed = False


def install() -> None:
    """Guard every request model that turns into sampling parameters, once.

    Called when a configuration with sauce is made, in the process that serves; engine
    processes never import these models.
    """
    global _installed
    if _installed:
        return
    _installed = True
    renderer = compat.online_renderer_cls()
    compat.wrap(renderer, "preprocess_chat", _preprocess)
    compat.wrap(renderer, "preprocess_cmpl", _preprocess)
    for protocol in compat.request_protocols():
        compat.wrap(protocol, "to_sampling_params", _to_sampling_params)
        if "to_beam_search_params" in vars(protocol):
            compat.wrap(protocol, "to_beam_search_params", _to_beam_search_params)


async def _preprocess(
    original: Callable[..., Any],
    self: Any,
    request: Any,
    inputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Before rendering notes the pictures as sent: a neighbour with the same picture
    # would rely on data that a refused request never brings.
    from vllm_sauce.plugin.admission import check_early

    refuse_misplaced(request)
    if getattr(request, "use_beam_search", False):
        refuse_beam_search(request)
    check_early(self.renderer, request, inputs)
    return await original(self, request, inputs, *args, **kwargs)


def refuse_misplaced(request: Any) -> None:
    """Refuse sauce fields where vLLM ignores them. Raises: InvalidRequestError."""
    if keys := _misplaced(request):
        raise InvalidRequestError(
            f"{', '.join(keys)} stands at the top level of the request, where vLLM "
            "ignores it; put it into vllm_xargs (see vllm_sauce.forget_body)"
        )


def _misplaced(request: Any) -> list[str]:
    extra = getattr(request, "model_extra", None) or {}
    return sorted(key for key in extra if wire.means_us(key))


def _to_sampling_params(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    refuse_misplaced(self)
    return original(self, *args, **kwargs)


def refuse_beam_search(request: Any) -> None:
    """Refuse sauce fields that beam search drops. Raises: InvalidRequestError."""
    xargs = getattr(request, "vllm_xargs", None) or {}
    asked = [key for key in xargs if wire.means_us(key)]
    if keys := sorted([*asked, *_misplaced(request)]):
        raise InvalidRequestError(
            f"{', '.join(keys)} with use_beam_search: vLLM's beam search drops "
            "vllm_xargs, so nothing would be forgotten; ask without beam search"
        )


def _to_beam_search_params(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    refuse_beam_search(self)
    return original(self, *args, **kwargs)
