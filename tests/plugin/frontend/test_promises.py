# SPDX-License-Identifier: Apache-2.0
"""What a body asks for is what is admitted, and what the answer says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from vllm import SamplingParams

import vllm_sauce
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend import admission as module
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.frontend.promises import MAX_HEADER_BYTES, Promise
from vllm_sauce.plugin.frontend.raw_body import RawBodyCheck
from vllm_sauce.unlearning.mask import Mask

CHAT, RENDER = "/v1/chat/completions", "/v1/chat/completions/render"
DEAF = "/generative_scoring"

Drop = Callable[[dict[str, Any]], dict[str, Any] | None]


def server(
    admission: Admission, drop: Drop = lambda xargs: xargs, features: Any = ()
) -> Starlette:
    """Return an application whose routes admit a request of the body's xargs.

    ``drop`` stands for what a version of vLLM may do to them on the way, ``features``
    for its pictures.
    """
    processor = SimpleNamespace(
        _sauce_admission=admission,
        _sauce_modalities={"image", "video"},
        renderer=SimpleNamespace(mm_processor_cache=None),
    )

    def original(self: Any, name: str, prompt: Any, params: Any) -> Any:
        return SimpleNamespace(mm_features=list(features), cache_salt=None)

    async def admit(params: Any) -> None:
        await asyncio.sleep(0)  # others come in between
        module._process_inputs(original, processor, "x", "words", params)

    async def answer(request: Any) -> Response:
        xargs = (await request.json()).get("vllm_xargs") or {}
        params = SamplingParams(extra_args=drop(xargs))
        try:
            # In a task of its own, as vLLM's handlers run.
            await asyncio.create_task(admit(params))
        except InvalidRequestError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"said": "a dog"})

    routes = [Route(path, answer, methods=["POST"]) for path in (CHAT, RENDER, DEAF)]
    app = Starlette(routes=routes)
    app.state.engine_client = SimpleNamespace(input_processor=processor)
    compat.add_innermost_middleware(app, RawBodyCheck)
    return app


def ask(app: Starlette, *bodies: Any, path: str = CHAT) -> list[httpx.Response]:
    """Send bodies, all at once."""

    async def asking() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as each:
            return await asyncio.gather(*(each.post(path, json=b) for b in bodies))

    return asyncio.run(asking())


def with_mandatory(admission: Admission, *names: str) -> Admission:
    """Return an admission of the same bundle that forgets more."""
    config = SauceConfig(bundle=admission.config.bundle, forget=names)
    return Admission(config, admission.bundle)


def test_answers_say_what_they_forgot_each_its_own(admission: Admission) -> None:
    """Four at once; nothing forgotten is nothing said."""
    replies = ask(
        server(admission),
        {},
        vllm_sauce.forget_body("seen"),
        vllm_sauce.forget_body("seen", "read", strength=2.0),
        vllm_sauce.forget_body("seen", strength=0),
    )
    assert [reply.status_code for reply in replies] == [200] * 4
    said = [reply.headers.get("sauce-forget") for reply in replies]
    assert said[0] is said[3] is None
    assert json.loads(said[1]) == {"seen": 1.0}
    assert json.loads(said[2]) == {"read": 2.0, "seen": 2.0}
    masks = [reply.headers.get("sauce-mask") for reply in replies]
    assert masks[0] is masks[3] is None
    digest = admission.bundle.digest
    assert masks[1] == Mask.of([("seen", 1.0)], digest).mask_id
    assert masks[2] == Mask.of([("seen", 2.0), ("read", 2.0)], digest).mask_id


def test_what_is_mandatory_is_not_named(admission: Admission) -> None:
    """The operator knows its mask's id; a client is told of what it asked for."""
    strict = with_mandatory(admission, "read")
    bodies: list[Any] = [{}, vllm_sauce.forget_body("seen", "read", strength=0.5)]
    plain, asked = ask(server(strict), *bodies)
    assert json.loads(plain.headers["sauce-forget"]) == {}
    wanted = Mask.of([("read", 1.0)], admission.bundle.digest).mask_id
    assert plain.headers["sauce-mask"] == wanted
    # At the strength it is forgotten with: what is mandatory is so at 1 or more.
    assert json.loads(asked.headers["sauce-forget"]) == {"read": 1.0, "seen": 0.5}


def test_only_answers_say_it(admission: Admission) -> None:
    """A refusal forgot nothing; a rendered body has no answer in it."""
    app = server(with_mandatory(admission, "read"))
    (refused,) = ask(app, vllm_sauce.forget_body("nobody"))
    assert refused.status_code == 400
    (rendered,) = ask(app, vllm_sauce.forget_body("seen"), path=RENDER)
    (deaf,) = ask(app, {}, path=DEAF)
    assert rendered.status_code == deaf.status_code == 200
    for reply in (refused, rendered, deaf):
        assert not {"sauce-forget", "sauce-mask"} & set(reply.headers)


@pytest.mark.parametrize(
    "drop",
    [
        lambda xargs: {},
        lambda xargs: None,
        lambda xargs: xargs | {"sauce_forget": ["read"]},
        lambda xargs: xargs | {"sauce_strength": 0.5},
    ],
)
def test_a_wish_that_is_lost_on_the_way_is_refused(
    admission: Admission, drop: Drop
) -> None:
    """Whatever a later vLLM does between its routes and its engine."""
    bodies = vllm_sauce.forget_body("seen"), vllm_sauce.forget_body("seen")
    for reply in ask(server(admission, drop), *bodies):
        assert reply.status_code == 400
        assert "asks to forget seen, but another wish reached" in reply.text
        assert not {"sauce-forget", "sauce-mask"} & set(reply.headers)
    # What nobody asked for does not come in on the way, either.
    (reply,) = ask(server(admission, lambda _: {"sauce_forget": ["read"]}), {})
    assert "asks to forget nothing, but another wish reached" in reply.text


def test_a_refusal_does_not_tell_what_is_mandatory(
    admission: Admission, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator's log does."""
    strict = with_mandatory(admission, "both")
    lost = server(strict, lambda _: {"sauce_forget": ["read"]})
    (reply,) = ask(lost, vllm_sauce.forget_body("seen"))
    assert reply.status_code == 400 and "asks to forget seen" in reply.text
    assert "both" not in reply.text
    assert "both" in caplog.text


@pytest.mark.parametrize("path", [CHAT, DEAF, RENDER])
def test_no_promise_outlives_its_request(admission: Admission, path: str) -> None:
    """Of requests one after the other in one context, as some servers run them."""
    app = server(admission)

    async def asking() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as each:
            masked = await each.post(CHAT, json=vllm_sauce.forget_body("seen"))
            return [masked, await each.post(path, json={})]

    masked, plain = asyncio.run(asking())
    assert masked.status_code == plain.status_code == 200
    assert "sauce-forget" in masked.headers and "sauce-forget" not in plain.headers
    # Beside what the route says itself.
    assert masked.headers["content-type"] == "application/json"


def test_a_long_list_is_a_number(admission: Admission) -> None:
    """A proxy's limit for headers is no reason to lose an answer."""
    names = [f"a person called {number:03}" for number in range(100)]
    mask = Mask.of([(name, 1.0) for name in names], admission.bundle.digest)
    headers = dict(Promise(mask, tuple(names)).headers())
    assert headers[b"sauce-forget"] == b"100"
    few = dict(Promise(mask, tuple(names[:9])).headers())
    assert json.loads(few[b"sauce-forget"]) == dict.fromkeys(names[:9], 1.0)
    assert sum(map(len, few.values())) < MAX_HEADER_BYTES


def test_names_in_any_alphabet_are_ascii_in_a_header(admission: Admission) -> None:
    """A header's bytes; JSON's escapes carry what they cannot."""
    mask = Mask.of([("狗\n", 1.0)], admission.bundle.digest)
    text = dict(Promise(mask, ("狗\n",)).headers())[b"sauce-forget"]
    assert text.isascii() and b"\n" not in text
    assert json.loads(text) == {"狗\n": 1.0}
