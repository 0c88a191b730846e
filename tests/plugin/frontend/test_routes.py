# SPDX-License-Identifier: Apache-2.0
"""Every route of vLLM's own application, and every way to be misunderstood there.

No engine runs: what is refused never reaches one, and what is not is counted.
"""

from __future__ import annotations

import json
import logging
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugin.deaf_routes import DECIDED
from tests.plugin.misplaced import BODIES, NOBODY, contents
from vllm_sauce.plugin.frontend.routes import place_of

# Each builds vLLM's application.
pytestmark = pytest.mark.engine

XARGS = {"vllm_xargs": {"sauce_forget": NOBODY}}
CHAT = "/v1/chat/completions"
OURS = re.compile("forg[eo]t|sauce|strength|unknown concept|too deeply")


def arguments(*more: str) -> Namespace:
    """Parse a server's command line; routes that an option adds are all there."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    options = ["--enable-scale-out", "--enable-fault-tolerance", *more]
    return parser.parse_args(["--model", "tiny", *options])


def built(model_dir: Path, bundle_dir: Path, *more: str) -> Any:
    """Build vLLM's application as a server with sauce does, around a stand-in."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tasks import POOLING_TASKS

    from vllm_sauce.plugin import compat

    sauce = {"sauce": {"bundle": str(bundle_dir)}}
    engine_args = EngineArgs(model=str(model_dir), additional_config=sauce)
    model_config = engine_args.create_model_config()
    tasks = (*POOLING_TASKS, "generate", "transcription", "realtime", "render")
    app = compat.seam_owner("http", "build_app").build_app(
        arguments(*more), tasks, model_config
    )
    vllm_config = SimpleNamespace(additional_config=sauce)
    processor = SimpleNamespace(vllm_config=vllm_config)
    app.state.engine_client = SimpleNamespace(input_processor=processor)
    return app


@pytest.fixture(scope="module", autouse=True)
def level_of_the_root_logger() -> Iterator[None]:
    """What building the application leaves at ERROR, for all files behind this one."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture(scope="module")
def app(model_dir: Path, bundle_dir: Path) -> Iterator[Any]:
    """The application with every route that vLLM can be made to offer here."""
    from vllm.config import ModelConfig
    from vllm.entrypoints.pooling import factories

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("VLLM_ENABLE_COHERE_API", "1")
        patch.setattr(ModelConfig, "get_pooling_task", lambda self, tasks: tasks[0])
        patch.setattr(factories, "enable_scoring_api", lambda *_: True)
        yield built(model_dir, bundle_dir)


def takes_bodies(app: Any) -> list[tuple[str, str]]:
    """Return method and path of each route whose body anybody may read."""
    found = []
    for route in app.routes:
        if not hasattr(route, "endpoint") and not hasattr(route, "app"):
            pytest.fail(f"a kind of route nobody has decided about: {route!r}")
        methods = getattr(route, "methods", None)
        if methods is None and type(route).__name__ == "Mount":
            methods = {"POST"}
        for method in sorted((methods or set()) - {"GET", "HEAD", "OPTIONS"}):
            found.append((method, route.path))
    return found


def send(app: Any, method: str, path: str, **content: Any) -> Any:
    """Ask the application; errors of vLLM's own handlers are answers, too."""
    from starlette.testclient import TestClient

    client = TestClient(app, raise_server_exceptions=False)
    return client.request(method, re.sub(r"\{\w+\}", "x", path), **content)


def assert_refused(reply: Any, why: object = "") -> None:
    """Check that the answer is ours: 400, and a message about forgetting."""
    assert reply.status_code == 400, (why, reply.status_code, reply.text[:500])
    assert OURS.search(reply.text), (why, reply.text[:500])


def test_every_route_has_been_decided(app: Any) -> None:
    """A route that a new vLLM brings fails here until somebody reads what it does."""
    paths = {path for _, path in takes_bodies(app)}
    assert {CHAT, "/generative_scoring", "/inference/v1/generate"} <= paths
    assert {
        "/collective_rpc",
        "/pooling",
        "/score",
        "/v1/audio/transcriptions",
    } <= paths
    undecided = sorted(paths - DECIDED)
    assert not undecided, (
        f"{undecided}: read what these do with their bodies and enter them in "
        "vllm_sauce/plugin/frontend/routes.py or tests/plugin/deaf_routes.py"
    )


@pytest.mark.parametrize("name", BODIES)
def test_no_route_ignores_a_wish(app: Any, name: str) -> None:
    """400 for every spelling and place, whatever the route and the rest of the body."""
    headers = {"content-type": "application/json"}
    for method, path in takes_bodies(app):
        for content in contents(name, place_of(path)):
            reply = send(app, method, path, headers=headers, content=content)
            assert_refused(reply, (path, content))


def test_a_route_of_a_plugin_is_checked_too(model_dir: Path, bundle_dir: Path) -> None:
    """What is in no table carries nothing: a wish is refused, the rest passes."""
    app = built(model_dir, bundle_dir)

    async def own() -> str:
        return "served"

    app.add_api_route("/someones/own", own, methods=["PUT"])
    assert "served" in send(app, "PUT", "/someones/own", json={"prompt": "sauce"}).text
    assert_refused(send(app, "PUT", "/someones/own", json=XARGS))


BODY = json.dumps({"prompt": "x", **XARGS})
ESCAPED = BODY.replace("sauce", "\\u0073\\u0061uce")


@pytest.mark.parametrize(
    "content",
    [
        BODY.encode("utf-16"),
        BODY.encode("utf-16-le"),
        BODY.encode("utf-32"),
        BODY.encode("utf-8-sig"),
        ESCAPED.encode(),
        BODY.replace('"x"', "NaN").encode(),
        b" \n" + BODY.encode(),
        # Of two equal keys the last counts, so the first would be dropped.
        BODY[:-1].encode() + b', "vllm_xargs": {}}',
        b'{"vllm_xargs": {}, ' + BODY[1:].encode(),
        b'{"vllm_xargs": {"sauce_forget": ["seen"], "sauce_forget": ["both"]}}',
        b'{"vllm_xargs": {"sauce_forget": ["seen"]}, "n": 1, "n": 2}',
        b'{"vllm_xargs": {"sauce": {"forget": ["seen"], "forget": ["both"]}}}',
        b'[{"sauce_forget": ["seen"]}]',
        b'{"a":' * 100_000 + BODY.encode() + b"}" * 100_000,
    ],
    ids=lambda content: repr(content[:24]),
)
@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-16",
        "application/problem+json",
        "application/octet-stream",
        "text/plain",
        "application/x-www-form-urlencoded",
        None,
    ],
)
def test_no_encoding_hides_a_wish(app: Any, content: bytes, kind: str | None) -> None:
    """Whatever the bytes are called, they are read as the routes may read them."""
    headers = {} if kind is None else {"content-type": kind}
    for path in (CHAT, "/generative_scoring", "/collective_rpc", "/invocations"):
        assert_refused(send(app, "POST", path, content=content, headers=headers), path)


def test_forms_and_queries_are_read(app: Any) -> None:
    """A field that means us, or JSON in a field that does, on forms and in the URL."""
    path = "/v1/audio/transcriptions"
    xargs = json.dumps(XARGS["vllm_xargs"])
    files = {"file": ("a.wav", b"RIFF")}
    for data in (
        {"sauce_forget": "seen"},
        {"vllm_xargs[sauce_forget]": "seen"},
        {"vllm_xargs": xargs},
    ):
        assert_refused(send(app, "POST", path, data=data), data)
        assert_refused(send(app, "POST", path, data=data, files=files), data)
    for path in (CHAT, "/generative_scoring"):
        assert_refused(send(app, "POST", f"{path}?sauce_forget=seen", json={}))
        assert_refused(send(app, "POST", f"{path}?%20sauce%5fforget", json={}))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"\x1f\x8b\x08\x00 sauce_forget", "application/json"),
        (b"\xff\xfe\xff", "application/json"),
        (b"9" * 5000, "application/json"),
        (b"no boundary", "multipart/form-data"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
    ],
)
def test_what_is_no_body_is_left_to_vllm(app: Any, content: bytes, kind: str) -> None:
    """vLLM answers as ever for what neither it nor we can read."""
    for path in (CHAT, "/v1/completions", "/v1/audio/transcriptions"):
        headers = {"content-type": kind}
        reply = send(app, "POST", path, content=content, headers=headers)
        assert 400 <= reply.status_code <= 500, reply.text[:500]
        assert "sauce" not in reply.text


def test_websockets_are_refused(app: Any) -> None:
    """Messages of a socket are in no table: nobody gets as far as sending one."""
    from starlette.testclient import TestClient, WebSocketDenialResponse

    client = TestClient(app)
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/v1/realtime"),
    ):
        pass
    assert denied.value.status_code == 400
    assert "WebSocket" in denied.value.text


def test_errors_have_the_route_s_own_form(app: Any) -> None:
    """OpenAI's clients and Anthropic's each find the message where they look."""
    openai = send(app, "POST", CHAT, json={"sauce_forget": ["seen"]}).json()
    assert openai["error"]["code"] == 400
    assert openai["error"]["message"] == (
        "'sauce_forget' stands where /v1/chat/completions ignores it, so nothing would "
        "be forgotten; put it into 'vllm_xargs' as sauce_forget (see "
        "vllm_sauce.forget_body)"
    )
    anthropic = send(app, "POST", "/v1/messages", json=XARGS).json()
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "invalid_request_error"
    assert "unknown concept 'nobody'" in anthropic["error"]["message"]
    cannot = send(app, "POST", "/generative_scoring", json=XARGS).json()["error"]
    assert "/generative_scoring cannot carry" in cannot["message"]


def test_under_a_root_path_and_mounted(model_dir: Path, bundle_dir: Path) -> None:
    """A server behind a path of its own knows its routes by the same names."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    app = built(model_dir, bundle_dir, "--root-path", "/inner")
    mounted = Starlette(routes=[Mount("/outer", built(model_dir, bundle_dir))])
    for asked, prefix in ((app, "/inner"), (app, ""), (mounted, "/outer")):
        reply = send(asked, "POST", prefix + CHAT, json=XARGS)
        assert_refused(reply, prefix)
        assert "unknown concept 'nobody'" in reply.text


def test_strangers_learn_nothing(model_dir: Path, bundle_dir: Path) -> None:
    """Who may not ask is told so, and neither what there is nor what was wrong."""
    app = built(model_dir, bundle_dir, "--api-key", "secret")
    assert send(app, "POST", CHAT, json=XARGS).status_code == 401
    headers = {"authorization": "Bearer secret"}
    assert_refused(send(app, "POST", CHAT, json=XARGS, headers=headers))
