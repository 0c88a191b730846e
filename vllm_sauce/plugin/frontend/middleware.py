# SPDX-License-Identifier: Apache-2.0
"""The check of every body, around vLLM's routes and inside all other middleware.

There it sees what the routes will see, of clients that may ask, and hands on the very
messages it received.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend import routes, run_batch
from vllm_sauce.plugin.frontend.admission import Admission, admission_of
from vllm_sauce.plugin.frontend.raw_body import Body
from vllm_sauce.plugin.startup import settings
from vllm_sauce.unlearning.wire import means_us

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")

_placed = False


def install() -> None:
    """Check what clients send to any server that is configured with sauce."""
    # What renders only makes no engine's configuration, but does a model's.
    compat.wrap(compat.engine_args_cls(), "create_model_config", _create_model_config)


def _create_model_config(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    global _placed
    if not _placed and settings.requested(self, os.environ) is not None:
        compat.wrap_function(compat.http_app_module(), "build_app", _build_app)
        run_batch.install()
        _placed = True
    return original(self, *args, **kwargs)


def _build_app(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    app = original(*args, **kwargs)
    compat.add_innermost_middleware(app, RawBodyCheck)
    return app


class RawBodyCheck:
    """ASGI middleware that refuses a wish to forget which its route would drop."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Check a request and hand it on, or answer 400."""
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
            return
        path = None
        if scope["type"] == "http" and scope["method"] not in _WITHOUT_BODY:
            path = compat.route_path(scope)
        if path is None:
            await self.app(scope, receive, send)
            return
        messages = await _all_of(receive)
        if messages[-1]["type"] == "http.disconnect":
            return
        try:
            await _check(path, scope, messages)
        except RequestError as error:
            await _refuse(path, error, scope, receive, send)
        else:
            await self.app(scope, _replay(messages, receive), send)


async def _all_of(receive: Receive) -> list[Message]:
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def again() -> Message:
        for message in left:
            return message
        return await receive()

    return again


async def _check(path: str, scope: Any, messages: list[Message]) -> None:
    admission = _admission(scope["app"])
    query = scope["query_string"].decode("latin-1")
    for key, _ in parse_qsl(query, keep_blank_values=True):
        _refuse_field(path, key, "query")
    body = b"".join(message.get("body", b"") for message in messages)
    _check_json(path, routes.place_of(path), body, admission)
    await _check_form(path, scope, messages)


def _admission(app: Any) -> Admission | None:
    # A server that only renders has no engine; the one that generates will resolve.
    engine = app.state.engine_client
    return None if engine is None else admission_of(engine.input_processor)


def _check_json(
    path: str,
    place: routes.Place | None,
    text: bytes | str,
    admission: Admission | None,
) -> None:
    try:
        body = Body.read(text)
    except RequestError:
        raise
    except ValueError:
        return  # vLLM reads JSON by the same function, and answers for what is none
    user_data = routes.USER_DATA.get(path, ())
    body.check(path, place, admission, user_data)


async def _check_form(path: str, scope: Any, messages: list[Message]) -> None:
    """Check a form as the routes will read it; nothing when the body is none."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    async def no_more() -> Message:
        return {"type": "http.disconnect"}

    request = Request(scope, _replay(messages, no_more))
    try:
        fields = (await request.form()).multi_items()
    except HTTPException:
        return  # the routes read forms by the same function
    try:
        for key, value in fields:
            _refuse_field(path, key, "form")
            if isinstance(value, str):
                _check_json(path, None, value, None)
    finally:
        await request.close()


def _refuse_field(path: str, key: str, where: str) -> None:
    if means_us(key):
        raise InvalidRequestError(
            f"{key[:64]!r} stands in the {where} of a request to {path}, where it "
            "would be ignored, so nothing would be forgotten; send JSON with "
            "vllm_xargs to a route that takes it (see vllm_sauce.forget_body)"
        )


async def _refuse(
    path: str, error: RequestError, scope: Any, receive: Receive, send: Send
) -> None:
    from starlette.responses import JSONResponse

    response = JSONResponse(routes.error_body(path, str(error)), status_code=400)
    await response(scope, receive, send)


async def _refuse_websocket(scope: Any, receive: Receive, send: Send) -> None:
    error = InvalidRequestError(
        "vllm-sauce does not serve WebSocket routes: what their messages ask to forget "
        "would be ignored; use a route that takes vllm_xargs, such as "
        "/v1/chat/completions"
    )
    if "websocket.http.response" in scope.get("extensions", {}):
        await _refuse(scope["path"], error, scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": "see HTTP"})
