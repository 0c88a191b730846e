# SPDX-License-Identifier: Apache-2.0
"""The routes of a server that runs: what they ignore, and what they carry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import vllm_sauce
from tests.plugin.conftest import RUNNER
from tests.plugin.deaf_routes import DECIDED
from tests.plugin.misplaced import BODIES, contents
from tests.plugin.support import Ask, ReferenceModel, scale_out
from tests.plugin.test_server import (
    ONE_PROCESS,
    data_url,
    free_port,
    serve,
    wait_until_healthy,
)
from vllm_sauce.bundle import Bundle
from vllm_sauce.plugin.compat import messages_carry
from vllm_sauce.plugin.frontend.routes import ROUTES, place_of
from vllm_sauce.unlearning.mask import Mask

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

MANDATORY = "read"
SAYS = "sauce-forget", "sauce-mask"
QUESTION = "what is in the picture ?"
TALK = [{"role": "user", "content": QUESTION}]
GREEDY = {"model": "tiny", "temperature": 0}
WISH = vllm_sauce.forget_body("both", strength=10.0)


@pytest.fixture(scope="module")
def server(
    model_dir: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A server with every optional route and a mandatory concept: address and log."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    process = serve(
        str(model_dir),
        *("--plugin", "sauce", "--sauce-bundle", str(bundle_dir)),
        *("--sauce-forget", MANDATORY, *scale_out(), "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8"),
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        log=log,
        environ={
            **ONE_PROCESS,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
        },
    )
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    yield address, log
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def client(server: tuple[str, Path]) -> Iterator[httpx.Client]:
    """One connection for all that is asked."""
    with httpx.Client(base_url=server[0], timeout=60) as opened:
        yield opened


def routes_of(log: Path) -> set[tuple[str, str]]:
    """Return method and path of what a server says it has, but for looking."""
    said = re.findall(r"Route: (\S+), Methods: (.*)", log.read_text())
    return {
        (method, path)
        for path, methods in said
        for method in methods.split(", ")
        if method not in ("GET", "HEAD", "OPTIONS")
    }


def test_the_running_server_ignores_no_wish(
    server: tuple[str, Path], client: httpx.Client
) -> None:
    """Each route that the server says it has has been decided; none answers 200."""
    asked = routes_of(server[1])
    paths = {path for _, path in asked}
    assert {"/inference/v1/generate", "/generative_scoring", "/invocations"} <= paths
    assert {"/collective_rpc", "/v1/messages", "/v1/load_lora_adapter"} <= paths
    assert ("/v1/messages/render" in paths) == messages_carry()
    assert paths <= DECIDED, "decide: vllm_sauce/plugin/frontend/routes.py"
    for method, path in sorted(asked):
        url = path.replace("{response_id}", "x").replace("{adapter_name}", "x")
        for content in (c for name in BODIES for c in contents(name, place_of(path))):
            headers = {"content-type": "application/json"}
            reply = client.request(method, url, content=content, headers=headers)
            assert reply.status_code == 400, (path, content, reply.text[:500])
            assert re.search("forg[eo]t|sauce|strength|unknown|deeply", reply.text)
    assert client.get("/health").is_success


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Ask, and read the answer."""
    reply = client.post(path, json=GREEDY | body)
    assert reply.is_success, reply.text[:1000]
    return reply.json()


def chat(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the first answer of a chat route."""
    body = {"messages": TALK, "max_tokens": 12, "ignore_eos": True, **more}
    return post(client, path, body)["choices"][0]["message"]["content"]


def batch(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the answers to two conversations."""
    body = {"messages": [TALK, TALK], "max_tokens": 12, **more}
    return [choice["message"] for choice in post(client, path, body)["choices"]]


def complete(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the completion of a prompt in the chat's form."""
    prompt = f"USER: {QUESTION} ASSISTANT:"
    body = {"prompt": prompt, "max_tokens": 12, "ignore_eos": True, **more}
    return post(client, path, body)["choices"][0]["text"]


def messages(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the answer in Anthropic's form."""
    return post(client, path, {"messages": TALK, "max_tokens": 12, **more})["content"]


def respond(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the answer of the Responses API."""
    body = {"input": QUESTION, "max_output_tokens": 12, **more}
    return [item["content"] for item in post(client, path, body)["output"]]


def generate(client: httpx.Client, path: str, **more: Any) -> Any:
    """Return the tokens that follow tokens."""
    tokens = post(client, "/tokenize", {"messages": TALK})["tokens"]
    params: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    if more:
        params["extra_args"] = more["vllm_xargs"]
    body = {"token_ids": tokens, "sampling_params": params}
    return post(client, path, body)["choices"][0]["token_ids"]


def rendered(body: dict[str, Any]) -> Callable[..., Any]:
    """Return how to render a body and to generate from what comes back."""

    def ask(client: httpx.Client, path: str, **more: Any) -> Any:
        request = post(client, path, body | more)
        if isinstance(request, list):
            (request,) = request
        request["sampling_params"]["max_tokens"] = 12
        reply = client.post("/inference/v1/generate", json=request)
        assert reply.is_success, reply.text[:1000]
        return reply.json()["choices"][0]["token_ids"]

    return ask


CARRIES: dict[str, Callable[..., Any]] = {
    "/v1/chat/completions": chat,
    "/v1/chat/completions/batch": batch,
    "/v1/completions": complete,
    "/v1/messages": messages,
    "/v1/responses": respond,
    "/invocations": chat,
    "/inference/v1/generate": generate,
    "/v1/chat/completions/render": rendered({"messages": TALK}),
    "/v1/completions/render": rendered({"prompt": QUESTION}),
    "/v1/messages/render": rendered({"messages": TALK, "max_tokens": 12}),
    "/v1/responses/render": rendered({"input": QUESTION}),
}


def test_every_route_that_carries_is_asked_below() -> None:
    """The table's places are proven, but where nothing is generated."""
    derender = {path for path in ROUTES if path.endswith("/derender")}
    assert CARRIES.keys() == ROUTES.keys() - derender


Said = list[tuple[str | None, str | None]]


@pytest.fixture
def said(client: httpx.Client) -> Iterator[Said]:
    """What each answer of a test says was forgotten: names, the mask's id."""
    heard: Said = []

    def hear(reply: httpx.Response) -> None:
        if reply.request.url.path != "/tokenize":
            heard.append((reply.headers.get(SAYS[0]), reply.headers.get(SAYS[1])))

    client.event_hooks["response"].append(hear)
    yield heard
    client.event_hooks["response"].remove(hear)


@pytest.fixture(scope="module")
def wanted(bundle_dir: Path) -> Said:
    """What is to be said without a wish of one's own, and with it."""
    digest = Bundle.load(bundle_dir, weights=False).digest
    policy, both = (MANDATORY, 1.0), ("both", 10.0)
    return [
        ("{}", Mask.of([policy], digest).mask_id),
        ('{"both": 10.0}', Mask.of([policy, both], digest).mask_id),
    ]


@pytest.mark.parametrize("path", CARRIES)
def test_a_wish_in_its_place_is_heard(
    server: tuple[str, Path], client: httpx.Client, path: str, said: Said, wanted: Said
) -> None:
    """Answered otherwise with it, and the same without it afterwards; each says so."""
    if ("POST", path) not in routes_of(server[1]):
        pytest.skip(f"this vLLM has no {path}")
    if path == "/v1/messages" and not messages_carry():
        pytest.skip("this vLLM's carries no wish, and is refused: see above")
    ask = CARRIES[path]
    before = ask(client, path)
    masked = ask(client, path, **WISH)
    assert masked != before
    assert ask(client, path) == before
    assert ask(client, path, **WISH) == masked
    if path.endswith("/render"):
        wanted = [(None, None), wanted[0], (None, None), wanted[1]]
    assert said == wanted * 2


def test_scoring_forgets_what_is_mandatory(
    client: httpx.Client, reference: ReferenceModel
) -> None:
    """``/generative_scoring`` takes no wish, but is no way around the policy."""
    ask = Ask(None, QUESTION, (MANDATORY,), max_tokens=1)
    ids = reference.processor(text=ask.text)["input_ids"]
    ids = ids[0] if isinstance(ids[0], list) else ids
    forgotten = dict(reference.reply(ask).logprobs[0])
    known = dict(reference.reply(Ask(None, QUESTION, max_tokens=1)).logprobs[0])
    for token, logprob in forgotten.items():
        body = {"query": ids[:-1], "items": [ids[-1:]], "label_token_ids": [token]}
        reply = post(client, "/generative_scoring", body | {"apply_softmax": False})
        score = reply["data"][0]["score"]
        assert score == pytest.approx(math.exp(logprob), rel=1e-3)
    assert known != pytest.approx(forgotten, rel=1e-2)


@pytest.mark.feature("streaming")
def test_streams_are_handed_on_piece_by_piece(
    client: httpx.Client, wanted: Said
) -> None:
    """The check is not in the way of what is answered, and says first what it is."""
    # Many, as vLLM joins tokens that nobody has fetched yet.
    body = GREEDY | {"messages": TALK, "max_tokens": 200, "stream": True, **WISH}
    body["ignore_eos"] = True
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert (reply.headers[SAYS[0]], reply.headers[SAYS[1]]) == wanted[1]
        events = [line for line in reply.iter_lines() if line]
    assert len(events) > 20 and events[-1] == "data: [DONE]"


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_picture_by_another_name_is_the_clients_fault(
    client: httpx.Client, kind: str
) -> None:
    """The name of data that a request brings itself; the server goes on."""
    picture = {"type": "image_url", "image_url": {"url": data_url(7)}}
    content = [picture, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    made = post(client, "/v1/chat/completions/render", body)
    for name, told in made["features"].items():
        if told:
            made["features"][name] = {kind: told["image"]}
    reply = client.post("/inference/v1/generate", json=made)
    assert reply.status_code == (200 if kind == "image" else 400), reply.text[:500]
    assert (kind == "image") == ("which the served model does not" not in reply.text)


def test_what_was_let_in_is_counted(client: httpx.Client) -> None:
    """Beside vLLM's own figures, where operators look."""

    def counted() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if line.startswith("sauce_")]
        return {name: float(value) for name, value in samples if "_total" in name}

    before = counted()
    chat(client, "/v1/chat/completions", **WISH)
    chat(client, "/v1/chat/completions")
    bad = vllm_sauce.forget_body("boht")
    assert client.post("/v1/completions", json=GREEDY | bad).status_code == 400
    after = counted()
    moved = {name: value - before.get(name, 0) for name, value in after.items()}
    assert {name: value for name, value in moved.items() if value} == {
        'sauce_requests_total{forgets="asked"}': 1,
        'sauce_requests_total{forgets="mandatory"}': 1,
        'sauce_concept_requests_total{concept="both"}': 1,
        'sauce_refused_total{error="UnknownConceptError"}': 1,
    }
