# SPDX-License-Identifier: Apache-2.0
"""Where bodies come in: over HTTP and as lines of ``vllm run-batch``."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend.admission import Admission, admission_of
from vllm_sauce.plugin.frontend.counters import count_refused, counters
from vllm_sauce.plugin.frontend.promises import Promise, promised
from vllm_sauce.plugin.frontend.raw_body import Body, RawBodyCheck
from vllm_sauce.plugin.frontend.routes import place_of
from vllm_sauce.plugin.startup import settings

_placed = False
_admission: ContextVar[Admission | None] = ContextVar("_admission", default=None)


def install() -> None:
    """Check what clients send to any server that is configured with sauce."""
    # What renders only makes no engine's configuration, but does a model's.
    compat.hook("all", "EngineArgs.create_model_config", _create_model_config)


def _create_model_config(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    global _placed
    if not _placed and settings.requested(self, os.environ) is not None:
        compat.hook("http", "build_app", _build_app, imported=True)
        compat.hook("http", "run_batch", _run_batch)
        compat.hook("http", "handle_endpoint_request", _handle_endpoint_request)
        compat.wrap_batch_lines(_model_validate_json)
        _placed = True
    return original(self, *args, **kwargs)


def _build_app(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    app = original(*args, **kwargs)
    counters()
    compat.add_innermost_middleware(app, RawBodyCheck)
    return app


async def _run_batch(
    original: Callable[..., Any], engine_client: Any, *args: Any, **kwargs: Any
) -> Any:
    _admission.set(admission_of(engine_client.input_processor))
    return await original(engine_client, *args, **kwargs)


def _model_validate_json(
    original: Callable[..., Any], line: str, *args: Any, **kwargs: Any
) -> Any:
    request = original(line, *args, **kwargs)
    object.__setattr__(request, "_sauce_line", line)
    return request


def _handle_endpoint_request(
    original: Callable[..., Any], request: Any, *args: Any, **kwargs: Any
) -> Any:
    try:
        promise = check_line(request.url, request._sauce_line, _admission.get())
    except RequestError as error:
        count_refused(error)
        module = compat.seam_owner("http", "make_async_error_request_output")
        return module.make_async_error_request_output(request, error_msg=str(error))
    answer = original(request, *args, **kwargs)
    # vLLM says itself what it has no endpoint for.
    return None if answer is None else _answered(promise, answer)


async def _answered(promise: Promise | None, answer: Awaitable[Any]) -> Any:
    # Each line is a task of its own, with a context of its own.
    promised.set(promise)
    return await answer


def check_line(url: str, line: str, admission: Admission | None) -> Promise | None:
    """Refuse a line whose wish to forget would be dropped; return what it is promised.

    Raises: RequestError.
    """
    try:
        body = Body.read(line)
    except json.JSONDecodeError as error:
        # vLLM has read it with another parser, and may have found what this one cannot.
        raise InvalidRequestError(
            f"the line is no JSON that vllm-sauce can check: {error}"
        ) from None
    place = place_of(url)
    return body.check(url, None if place is None else ("body", *place), admission)
