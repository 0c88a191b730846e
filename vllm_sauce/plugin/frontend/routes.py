# SPDX-License-Identifier: Apache-2.0
"""Where each of vLLM's routes carries a wish to forget to admission, if it does.

A route is here once somebody has read what becomes of its body. One that is not carries
nothing: a wish in its body is refused. ``tests/plugin/deaf_routes.py`` has those that
were read and carry none; one that is in neither fails the test that walks vLLM's.
"""

from __future__ import annotations

from typing import Any

from vllm_sauce.plugin import compat

Place = tuple[str, ...]
"""The keys from a body's root to the object that becomes ``extra_args``."""

_XARGS = ("vllm_xargs",)

ROUTES: dict[str, Place] = {
    # Generation: the object at the place becomes SamplingParams.extra_args.
    "/v1/chat/completions": _XARGS,
    "/v1/chat/completions/batch": _XARGS,
    "/v1/completions": _XARGS,
    "/v1/messages": _XARGS,
    "/v1/responses": _XARGS,
    "/invocations": _XARGS,  # the body of whichever of the above it fits
    "/inference/v1/generate": ("sampling_params", "extra_args"),
    # Rendering answers with a body for /inference/v1/generate, the place filled;
    # derendering generates nothing and is shown the request that was rendered.
    "/v1/chat/completions/render": _XARGS,
    "/v1/completions/render": _XARGS,
    "/v1/messages/render": _XARGS,
    "/v1/responses/render": _XARGS,
    "/v1/chat/completions/derender": ("chat_request", "vllm_xargs"),
    "/v1/completions/derender": ("completion_request", "vllm_xargs"),
}

USER_DATA: dict[str, tuple[str, ...]] = {
    "/v1/systemone": ("questions", "state"),
}
"""Fields at the root of a route's body whose keys the user makes up."""


def place_of(path: str) -> Place | None:
    """Return where a route carries a wish, None where it would be dropped."""
    if path in ("/v1/messages", "/v1/messages/render") and not compat.messages_carry():
        return None
    return ROUTES.get(path)


def generates(path: str) -> bool:
    """Say whether a route carries a wish to an engine, and answers with its words."""
    return place_of(path) is not None and not path.endswith("render")


def error_body(path: str, message: str) -> dict[str, Any]:
    """Return a refusal in the form that clients of a route read."""
    if path in ("/v1/messages", "/v1/messages/count_tokens"):
        error = {"type": "invalid_request_error", "message": message}
        return {"type": "error", "error": error}
    if path.startswith("/cohere/"):
        return {"message": message}
    return {
        "error": {
            "message": message,
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        }
    }
