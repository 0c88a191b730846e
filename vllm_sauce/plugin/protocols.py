# SPDX-License-Identifier: Apache-2.0
"""Refuse HTTP requests whose sauce fields vLLM would drop on the way to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin import compat

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
    for protocol in compat.request_protocols():
        compat.wrap(protocol, "to_sampling_params", _to_sampling_params)
        if "to_beam_search_params" in vars(protocol):
            compat.wrap(protocol, "to_beam_search_params", _to_beam_search_params)


def _misplaced(request: Any) -> list[str]:
    extra = getattr(request, "model_extra", None) or {}
    return sorted(key for key in extra if key.lower().startswith("sauce"))


def _to_sampling_params(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    if keys := _misplaced(self):
        raise InvalidRequestError(
            f"{', '.join(keys)} stands at the top level of the request, where vLLM "
            "ignores it; put it into vllm_xargs (see vllm_sauce.forget_body)"
        )
    return original(self, *args, **kwargs)


def _to_beam_search_params(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    asked = [k for k in (self.vllm_xargs or {}) if k.lower().startswith("sauce")]
    if keys := sorted([*asked, *_misplaced(self)]):
        raise InvalidRequestError(
            f"{', '.join(keys)} with use_beam_search: vLLM's beam search drops "
            "vllm_xargs, so nothing would be forgotten; ask without beam search"
        )
    return original(self, *args, **kwargs)
