# SPDX-License-Identifier: Apache-2.0
"""What the check of a raw body lets through, and what it hands on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

import vllm_sauce
from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.frontend.raw_body import Body, RawBodyCheck
from vllm_sauce.plugin.frontend.routes import ROUTES, place_of

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"sauce": {"type": "string"}, "forget": {}}}
TOOL = {"name": "cook", "parameters": SCHEMA}


def check(body: Any, admission: Admission, path: str = CHAT) -> None:
    """Check a body that a client sends to a route."""
    Body.read(json.dumps(body).encode()).check(path, place_of(path), admission)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "sauce_forget: ['nobody']"}]},
        {"messages": [{"content": [{"type": "x", "input": {"sauce": 1}}]}]},
        {"messages": [[{"content": [{"forget": 1}]}]]},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"sauce": 1}}}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"sauce": 1}'}}]}]},
        {"input": [{"type": "function_call_output", "output": [{"sauce": 1}]}]},
        {"tools": [{"type": "function", "function": TOOL}]},
        {"tools": [{"type": "function", **TOOL}]},
        {"tools": [{"name": "cook", "input_schema": SCHEMA}]},
        {"functions": [TOOL]},
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_config": {"format": {"schema": SCHEMA}}},
        {"sampling_params": {"structured_outputs": {"json": SCHEMA}}},
        {"documents": [{"title": "x", "sauce": "bechamel"}]},
        {"chat_request": {"documents": [{"sauce": "bechamel"}]}},
        {"model": "sauce", "user": "sauce_forget", "stop": ["forget"]},
        {"cache_salt": "mine", "messages": [{"content": [{"uuid": "mine"}]}]},
        {"prompt": "x", "prompt": "y"},  # noqa: F601
        [],
        "sauce_forget",
    ],
)
def test_what_is_the_user_s_own_passes(body: Any, admission: Admission) -> None:
    """Words of ours in what is said, typed or asked for are nobody's wish to forget."""
    check(body, admission)
    # Beside them a wish is found as ever.
    if isinstance(body, dict):
        check(body | vllm_sauce.forget_body("read"), admission)
        with pytest.raises(RequestError, match="unknown concept"):
            check(body | vllm_sauce.forget_body("nobody"), admission)
        with pytest.raises(InvalidRequestError, match="ignores it"):
            check(body | {"sauce_forget": ["read"]}, admission)


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_a_wish_in_its_place_passes(path: str, admission: Admission) -> None:
    """Both forms, where each route carries them."""
    place = place_of(path)
    assert place is not None
    for wish in (
        {"sauce_forget": ["seen", "read"], "sauce_strength": 2, "other": [1]},
        {"sauce": {"forget": ["seen"], "strength": 0.5}},
        {"other": 1},
    ):
        body: Any = wish
        for key in reversed(place):
            body = {key: body, "max_tokens": 1}
        check(body, admission, path)


def test_user_data_of_a_route_is_that_route_s_only() -> None:
    """Question names are the user's on /v1/systemone, and nothing elsewhere."""
    body = Body.read('{"questions": {"sauce": {"criteria": {"forget": 1}}}}')
    body.check("/v1/systemone", None, None, ("questions", "state"))
    with pytest.raises(InvalidRequestError, match=r"'questions\.sauce'"):
        body.check(CHAT, ("vllm_xargs",), None)


def test_old_messages_routes_carry_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.26 to 0.28 drop ``vllm_xargs`` of ``/v1/messages``."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest

    assert place_of("/v1/messages") == ("vllm_xargs",)
    fields = dict(AnthropicMessagesRequest.model_fields)
    del fields["vllm_xargs"]
    monkeypatch.setattr(AnthropicMessagesRequest, "__pydantic_fields__", fields)
    assert place_of("/v1/messages") is None
    assert place_of("/v1/messages/render") is None


def test_without_a_catalogue_the_form_is_checked() -> None:
    """A server that only renders refuses what no catalogue could make right."""
    Body.read('{"vllm_xargs": {"sauce_forget": ["x"]}}').check(
        CHAT, ("vllm_xargs",), None
    )
    with pytest.raises(InvalidRequestError, match="empty"):
        Body.read('{"vllm_xargs": {"sauce_forget": []}}').check(
            CHAT, ("vllm_xargs",), None
        )


class Asked:
    """An application behind the check, and a client in front: both take notes."""

    def __init__(self, received: list[Mapping[str, Any]]) -> None:
        self.received = list(received)
        self.seen: list[Mapping[str, Any]] = []
        self.sent: list[Any] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Read all there is, then answer in two pieces."""
        while not self.seen or self.seen[-1]["type"] != "http.disconnect":
            self.seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})

    def ask(self, scope: dict[str, Any]) -> None:
        """Send one request through the check."""
        left = iter(self.received)

        async def receive() -> Any:
            return next(left)

        async def send(message: Any) -> None:
            self.sent.append(message)

        asyncio.run(RawBodyCheck(self.app)(scope, receive, send))


def scope(method: str = "POST", kind: bytes = b"application/json") -> dict[str, Any]:
    """Return what a server says of a request to a route of nobody's."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    app = Starlette(routes=[Route("/x", lambda request: None, methods=[method])])
    app.state.engine_client = None
    return {
        "type": "http",
        "method": method,
        "path": "/x",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", kind)],
        "app": app,
    }


GONE = {"type": "http.disconnect"}


def parts(*bodies: bytes) -> list[Mapping[str, Any]]:
    """Return a request's body as it comes, in pieces."""
    last = len(bodies) - 1
    return [
        {"type": "http.request", "body": body, "more_body": index < last}
        for index, body in enumerate(bodies)
    ]


@pytest.mark.parametrize(
    "received",
    [
        [*parts(b'{"a": ', b'"caf\xc3', b'\xa9", "a": 2}'), GONE],
        [*parts(b""), GONE],
        [*parts(b"\x00\xff not JSON"), GONE],
        [{"type": "http.request"}, GONE],
    ],
)
def test_the_very_messages_are_handed_on(received: list[Any]) -> None:
    """The route gets every piece as it came, then what comes after: the hang-up."""
    for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
        asked = Asked(received)
        asked.ask(scope(method))
        assert asked.seen == received
        assert [message.get("body") for message in asked.sent] == [None, b"one", b"two"]


def test_a_form_is_handed_on_too() -> None:
    """Reading its fields leaves the route its messages."""
    received = [*parts(b"a=1&", b"b=sauce"), GONE]
    asked = Asked(received)
    asked.ask(scope(kind=b"application/x-www-form-urlencoded"))
    assert asked.seen == received


def test_who_hangs_up_is_not_served() -> None:
    """Half a body reaches no route, and no answer is sent to nobody."""
    asked = Asked([{**parts(b'{"a": 1', b"")[0]}, GONE])
    asked.ask(scope())
    assert asked.seen == asked.sent == []


def test_a_wish_in_two_pieces_is_one() -> None:
    """A key that is cut in two on its way is found."""
    asked = Asked(parts(b'{"sauce_', b'forget": ["x"]}'))
    asked.ask(scope())
    assert asked.seen == []
    assert asked.sent[0]["status"] == 400
