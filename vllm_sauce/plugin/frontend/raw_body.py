# SPDX-License-Identifier: Apache-2.0
"""A request's body, read raw: every key that means us is understood or refused.

vLLM's request models drop what they do not know, keep the last of two equal keys and
make numbers of booleans, so after them nobody can tell what was asked. The check stands
around vLLM's routes and inside all other middleware: it sees what the routes will see,
of clients that may ask, and hands on the very messages it received.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from vllm_sauce.client import means_us, parse_request
from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend import routes
from vllm_sauce.plugin.frontend.admission import Admission, admission_of
from vllm_sauce.plugin.frontend.counters import count_refused
from vllm_sauce.plugin.frontend.promises import Promise, promised
from vllm_sauce.plugin.frontend.routes import Place
from vllm_sauce.unlearning.mask import refuse_forged_keys

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")

Path = tuple[str | int, ...]
"""The keys and indices from a body's root to a value in it."""

_MESSAGES = frozenset(("messages", "input"))
_SAID = ("arguments", "content", "output")
"""What is said in a conversation, below one of the fields above."""

_TYPED = frozenset(
    (
        "functions",
        "output_config",
        "output_format",
        "response_format",
        "structured_outputs",
        "text",
        "tools",
    )
)
_SCHEMAS = (
    "input_examples",
    "input_schema",
    "json",
    "json_schema",
    "parameters",
    "schema",
)
"""What holds a user's JSON schema, below one of the fields above."""

_USER_DATA = ("documents", "guided_json")
_WRAPPERS = frozenset(("body", "chat_request", "completion_request"))
"""Fields that hold the body of another route."""

_IDENTITIES = ("cache_salt", "uuid")
"""Keys whose values name what is cached, at any depth."""


class RawBodyCheck:
    """ASGI middleware that refuses a wish to forget which its route would drop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            promise = await _check(path, scope, messages)
        except RequestError as error:
            await _refuse(path, error, scope, receive, send)
            return
        # In its own task's context, which those that answer it are given.
        promised.set(promise)
        if promise is not None:
            send = promise.told_in(send)
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


async def _check(path: str, scope: Any, messages: list[Message]) -> Promise | None:
    """Return what the answer will have forgotten, None where nothing is generated."""
    admission = _admission(scope["app"])
    query = scope["query_string"].decode("latin-1")
    for key, _ in parse_qsl(query, keep_blank_values=True):
        _refuse_field(path, key, "query")
    body = b"".join(message.get("body", b"") for message in messages)
    promise = _check_json(path, routes.place_of(path), body, admission)
    await _check_form(path, scope, messages)
    return promise


def _admission(app: Any) -> Admission | None:
    # A server that only renders has no engine; the one that generates will resolve.
    engine = app.state.engine_client
    return None if engine is None else admission_of(engine.input_processor)


def _check_json(
    path: str, place: Place | None, text: bytes | str, admission: Admission | None
) -> Promise | None:
    try:
        body = Body.read(text)
    except RequestError:
        raise
    except ValueError:
        # vLLM reads JSON by the same function, and answers for what is none.
        return None
    return body.check(path, place, admission, routes.USER_DATA.get(path, ()))


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

    count_refused(error)
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


class Members(tuple[tuple[str, Any], ...]):
    """A JSON object as it was sent, a key that stands twice included."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body as it was sent, and what stands out in it."""

    root: Any
    """JSON, its objects as ``Members``."""

    names_us: bool
    """A key somewhere in it means us."""

    identities: tuple[tuple[str, str], ...]
    """Each ``cache_salt`` and ``uuid``, with its value."""

    @classmethod
    def read(cls, text: bytes | str) -> Body:
        """Read a body as starlette does, by ``json.loads`` in any of its encodings.

        Raises: InvalidRequestError, or another ValueError for what is no JSON.
        """
        keys: set[str] = set()
        identities: list[tuple[str, str]] = []

        def members(pairs: list[tuple[str, Any]]) -> Members:
            for key, value in pairs:
                keys.add(key)
                if key in _IDENTITIES and isinstance(value, str):
                    identities.append((key, value))
            return Members(pairs)

        try:
            root = json.loads(text, object_pairs_hook=members)
        except RecursionError:
            raise _too_deep() from None
        return cls(root, any(map(means_us, keys)), tuple(identities))

    def check(
        self,
        path: str,
        place: Place | None,
        admission: Admission | None,
        user_data: tuple[str, ...] = (),
    ) -> Promise | None:
        """Refuse what would be dropped on the way to admission, or refused by it.

        Returns what the answer will have forgotten, None where nothing is generated.

        Raises: RequestError.
        """
        for key, value in self.identities:
            is_salt = key == "cache_salt"
            refuse_forged_keys(value if is_salt else None, () if is_salt else (value,))
        wish = self._wish(path, place, user_data) if self.names_us else None
        if admission is None:
            parse_request(wish)
            return None
        generates = routes.generates(path)
        if wish is None and not generates:
            return None
        promise = admission.promise(wish)
        return promise if generates else None

    def _wish(
        self, path: str, place: Place | None, user_data: tuple[str, ...]
    ) -> dict[str, Any] | None:
        objects = list(_objects(self.root, (*_USER_DATA, *user_data)))
        wish = None
        for where, members in objects:
            ours = [key for key, _ in members if means_us(key)]
            if ours and where != place:
                raise _misplaced(path, place, (*where, ours[0]))
            if ours:
                wish = members
        if wish is None:
            return None
        for where, members in objects:
            _refuse_twice(where, members)
            if place is not None and where == place[:-1]:
                _refuse_beam_search(members)
        try:
            extra_args: dict[str, Any] = _plain(wish, place or ())
        except RecursionError:
            raise _too_deep() from None
        return extra_args


def _objects(root: Any, user_data: tuple[str, ...]) -> Iterator[tuple[Path, Members]]:
    """Yield each object that is not the user's own, and where it stands.

    What a key of ours holds is read where the wish is.
    """
    left: list[tuple[Path, Any]] = [((), root)]
    while left:
        where, value = left.pop()
        if isinstance(value, Members):
            yield where, value
            left += [
                ((*where, key), inner)
                for key, inner in value
                if not means_us(key) and not _is_users((*where, key), user_data)
            ]
        elif isinstance(value, list):
            left += [((*where, index), inner) for index, inner in enumerate(value)]


def _is_users(where: Path, user_data: tuple[str, ...]) -> bool:
    *above, last = [part for part in where if isinstance(part, str)]
    if last in user_data:
        return _WRAPPERS.issuperset(above)
    if last in _SAID:
        return not _MESSAGES.isdisjoint(above)
    return last in _SCHEMAS and not _TYPED.isdisjoint(above)


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(
        "the body is nested too deeply to be checked; send a flatter one"
    )


def _misplaced(path: str, place: Place | None, where: Path) -> InvalidRequestError:
    if place is None:
        return InvalidRequestError(
            f"{_shown(where)} asks to forget, but {path} cannot carry that to the "
            "engine, so nothing would be forgotten; use a route that takes vllm_xargs, "
            "such as /v1/chat/completions (see vllm_sauce.forget_body)"
        )
    return InvalidRequestError(
        f"{_shown(where)} stands where {path} ignores it, so nothing would be "
        f"forgotten; put it into {_shown(place)} as sauce_forget (see "
        "vllm_sauce.forget_body)"
    )


def _refuse_twice(where: Path, members: Members) -> None:
    for key, count in Counter(key for key, _ in members).items():
        if count > 1:
            raise InvalidRequestError(
                f"{_shown((*where, key))} stands {count} times in a request that asks "
                "to forget, and only the last would count; give it once"
            )


def _refuse_beam_search(members: Members) -> None:
    # Also what pydantic would read as false: a client means beam search who names it.
    if dict(members).get("use_beam_search") not in (None, False):
        raise InvalidRequestError(
            "sauce_forget with use_beam_search: vLLM's beam search drops vllm_xargs, "
            "so nothing would be forgotten; ask without beam search"
        )


def _plain(value: Any, where: Path) -> Any:
    if isinstance(value, Members):
        _refuse_twice(where, value)
        return {key: _plain(inner, (*where, key)) for key, inner in value}
    if isinstance(value, list):
        return [_plain(inner, (*where, index)) for index, inner in enumerate(value)]
    return value


def _shown(where: Path) -> str:
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:64]}"
    return repr(text.removeprefix("."))
