# SPDX-License-Identifier: Apache-2.0
"""vLLM in an API process: arguments, admission, the HTTP application."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin.compat.version import seam_owner


def rust_frontend() -> bool:
    """Tell whether vLLM is to serve HTTP from its Rust program.

    Why: it runs no Python, so nothing of a request passes admission.
    """
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def uses_modelscope() -> bool:
    """Tell whether vLLM fetches a model that is named from ModelScope's hub.

    Why: it keeps another cache than the one that we look in.
    """
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_MODELSCOPE", False))


async def call_workers(async_llm: Any, method: str) -> list[list[Any]]:
    """Return what the workers of each engine answer to a call.

    Why: ``AsyncLLM.collective_rpc`` calls those of all engines of data parallelism, and
    returns the first one's answers. From 0.32 ``call_utility_all_async`` does this.
    """
    client = async_llm.engine_core
    return [
        await client._call_utility_async(
            "collective_rpc", method, None, (), None, engine=engine
        )
        for engine in client.core_engines
    ]


def takes_pictures(vllm_config: Any) -> bool:
    """Tell whether a request may bring a picture; vLLM leaves out the tower if not."""
    multimodal = vllm_config.model_config.multimodal_config
    return multimodal is None or multimodal.get_limit_per_prompt("image") > 0


def modalities(vllm_config: Any) -> frozenset[str]:
    """Return what the served model takes beside words, as vLLM names it.

    Why: vLLM compares no request that comes with its data (``/inference/v1/generate``)
    with it.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model_config = vllm_config.model_config
    if model_config.multimodal_config is None:
        return frozenset()
    # vLLM makes one in the same process, to know how much the encoder holds.
    info = MULTIMODAL_REGISTRY.create_processor(model_config).info
    limits = info.allowed_mm_limits.items()
    return frozenset(modality for modality, limit in limits if limit)


def is_sampling_params(params: Any) -> bool:
    """Tell generation requests from pooling ones."""
    from vllm import SamplingParams

    return isinstance(params, SamplingParams)


def with_extra_args(params: Any, extra_args: Mapping[str, Any] | None) -> Any:
    """Return a copy of ``params`` with other ``extra_args``; the caller's stays."""
    changed = copy.copy(params)
    changed.extra_args = None if extra_args is None else dict(extra_args)
    return changed


def read_no_prefix(request: Any) -> None:
    """Have a request's prompt computed, whatever of it is cached.

    Raises: UnsupportedVLLMError if this vLLM cannot
    """
    if not hasattr(request, "skip_reading_prefix_cache"):
        raise UnsupportedVLLMError(
            "vLLM's requests have no skip_reading_prefix_cache; refusing to read for a "
            "prompt what was computed as an answer"
        )
    request.skip_reading_prefix_cache = True


def abort(core: Any, what: Callable[[Any], bool]) -> None:
    """End requests of an engine core, whose clients are told so.

    Why: an error in a worker ends the engine. A core without a process of its own tells
    nobody, so there they stay.
    """
    from vllm.v1.request import RequestStatus

    if hasattr(core, "_send_abort_outputs"):
        requests = core.scheduler.requests
        names = [name for name, request in requests.items() if what(request)]
        ended = core.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        core._send_abort_outputs(ended)


def as_client_error(error: Exception) -> Exception:
    """Make vLLM answer 400 for an error of ours; it stays what it was, too.

    Why: the async engine turns what is not a ``VLLMClientError`` into a 500 without its
    message. vLLM versions without that class answer 400 to any ``ValueError``.
    """
    import vllm.exceptions

    client_error = getattr(vllm.exceptions, "VLLMClientError", None)
    if client_error is not None and not isinstance(error, client_error):
        cls: Any = type(error)
        error.__class__ = _client_error_cls(cls, client_error)
    return error


@functools.cache
def _client_error_cls(cls: type, client_error: type) -> type:
    return type(cls.__name__, (cls, client_error), {"__module__": cls.__module__})


def resend_images(processor: Any, prompt: Any, request: Any = None) -> None:
    """Make the API side send the images of a refused request again next time.

    They are in the prompt if it was rendered before, else in the request made of it.

    Why: rendering has noted them as already sent to the engine, but a refused request
    never gets there, so the next request with the same image would find no data.
    Remove when: vLLM notes an image as sent only when its request is.
    """
    cache = getattr(processor.renderer, "mm_processor_cache", None)
    # 0.26 and 0.27 take no note back: it is taken from where they are kept.
    notes = getattr(cache, "_cache", {})
    invalidate = getattr(cache, "invalidate", lambda mm_hash: notes.pop(mm_hash, None))
    rendered = prompt.get("mm_hashes") if isinstance(prompt, Mapping) else None
    found = {mm_hash for hashes in (rendered or {}).values() for mm_hash in hashes}
    for feature in getattr(request, "mm_features", None) or ():
        found.add(feature.mm_hash or feature.identifier)
    for mm_hash in found:
        invalidate(mm_hash)


def add_innermost_middleware(app: Any, middleware: Callable[..., Any]) -> None:
    """Place ASGI middleware around an application's routes, inside all other.

    Why: ``add_middleware`` puts it outside the others, and not at all once vLLM has
    built their stack.
    """
    from starlette.middleware import Middleware

    app.user_middleware.append(Middleware(middleware))
    app.middleware_stack = app.build_middleware_stack()


def route_path(scope: Mapping[str, Any]) -> str | None:
    """Return the path, as declared, of the route that will answer a request.

    None when none will: the application answers 404 or 405.
    """
    from starlette.routing import Match

    for route in scope["app"].router.routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return str(getattr(route, "path", route))
    return None


def messages_carry() -> bool:
    """Say whether ``/v1/messages`` hands ``vllm_xargs`` on. Remove with vLLM 0.28."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest

    return "vllm_xargs" in AnthropicMessagesRequest.model_fields


def wrap_batch_lines(around: Callable[..., Any]) -> None:
    """Wrap how ``vllm run-batch`` makes a request of a line of its file.

    Why: nothing after it sees the line.
    """
    line_cls = seam_owner("http", "BatchRequestInput").BatchRequestInput
    original = line_cls.model_validate_json
    line_cls.model_validate_json = staticmethod(functools.partial(around, original))
