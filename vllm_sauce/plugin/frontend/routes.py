# SPDX-License-Identifier: Apache-2.0
"""Where each of vLLM's routes carries a wish to forget to admission, if it does.

A route is here once somebody has read what becomes of its body. One that is not carries
nothing: a wish in its body is refused, and the test that walks vLLM's routes fails.
"""

from __future__ import annotations

from typing import Any

from vllm_sauce.plugin import compat

Place = tuple[str, ...]
"""The keys from a body's root to the object that becomes ``extra_args``."""

_XARGS = ("vllm_xargs",)

ROUTES: dict[str, Place | None] = {
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
    # These generate with parameters of their own, or from a form: mandatory concepts
    # are forgotten, for admission sees their parameters, and a wish is refused.
    "/generative_scoring": None,
    "/v1/decisions": None,
    "/v1/systemone": None,
    "/cohere/v2/chat": None,
    "/cohere/v2/chat/render": None,
    "/v1/audio/transcriptions": None,
    "/v1/audio/translations": None,
    # Pooling, which admission refuses.
    "/pooling": None,
    "/classify": None,
    "/score": None,
    "/v1/score": None,
    "/rerank": None,
    "/v1/rerank": None,
    "/v2/rerank": None,
    "/v1/embeddings": None,
    "/v2/embed": None,
    # These answer without the model.
    "/v1/messages/count_tokens": None,
    "/v1/responses/{response_id}/cancel": None,
    "/tokenize": None,
    "/detokenize": None,
    "/inference/v1/abort_requests": None,
    "/abort_requests": None,
    "/metrics": None,
    "/ping": None,
    "/static": None,
    "/adapters": None,
    "/adapters/{adapter_name}": None,
    "/v1/load_lora_adapter": None,
    "/v1/unload_lora_adapter": None,
    "/scale_elastic_ep": None,
    "/is_scaling_elastic_ep": None,
    "/fault_tolerance/apply": None,
    "/start_profile": None,
    "/stop_profile": None,
    # VLLM_SERVER_DEV_MODE: the operator's.
    "/collective_rpc": None,
    "/reset_prefix_cache": None,
    "/reset_mm_cache": None,
    "/reset_encoder_cache": None,
    "/sleep": None,
    "/wake_up": None,
    "/release_kv_cache_memory": None,
    "/pause": None,
    "/resume": None,
    "/init_weight_transfer_engine": None,
    "/shutdown_weight_transfer_engine": None,
    "/start_weight_update": None,
    "/start_draft_weight_update": None,
    "/update_weights": None,
    "/finish_weight_update": None,
    "/update_weight_version": None,
    "/weight_checker": None,
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
