# SPDX-License-Identifier: Apache-2.0
"""The benchmark's client: masks in its bodies, and a server that hears of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.bench import client
from vllm_sauce.plugin.bench.client import NOBODY, Asking
from vllm_sauce.plugin.bench.masks import Wish
from vllm_sauce.plugin.frontend.admission import Admission

UNKNOWN = 400, "unknown concept"

READ = Catalogue(
    Concept(name=name, domain="d", edits={"decoder.1": SiteEdit.uniform([1])})
    for name in ("dog", "red", "cat", "dgo")
)


@dataclass(frozen=True)
class Sample:
    """As vLLM's ``SampleRequest``."""

    prompt: Any = "a b c"
    multi_modal_data: Any = None
    chat_messages: Any = None
    request_overrides: dict[str, Any] | None = None


class Stub:
    """A server that answers by the concepts a request asks to forget."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, tuple[int, str]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []


@pytest.fixture(name="stub")
def _stub() -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stub.bodies.append(body)
            stub.headers.append(self.headers)
            names = ",".join(body["vllm_xargs"]["sauce_forget"])
            status, message = stub.answers.get(names, (200, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": message}}).encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield stub
    server.shutdown()
    server.server_close()


def run(url: str, asking: Asking, **given: Any) -> list[Any]:
    """Run the benchmark; returns the requests that vLLM's part was handed."""

    async def benchmark(**run: Any) -> list[Any]:
        return list(run["input_requests"])

    options = {
        "endpoint_type": "openai",
        "api_url": f"{url}/v1/completions",
        "model_id": "folder",
        "model_name": "tiny",
        "input_requests": [Sample(), Sample(), Sample()],
        "extra_headers": None,
        "extra_body": None,
        "ready_check_timeout_sec": 0,
        "ssl_context": None,
        **given,
    }
    requests: list[Any] = asyncio.run(asking.benchmark(benchmark, **options))
    return requests


def test_masks_come_in_turn_beside_what_else_is_asked(stub: Stub) -> None:
    stub.answers[NOBODY] = UNKNOWN
    requests = run(
        stub.url,
        Asking((("dog", "red"), ("cat",)), READ),
        extra_body={"top_k": 1, "vllm_xargs": {"mine": 1}},
        input_requests=[
            Sample(request_overrides={"n": 2, "vllm_xargs": {"yours": 2}}),
            Sample(),
            Sample(),
        ],
    )
    both = {"sauce_forget": ["dog", "red"], "sauce_strength": 1.0}
    assert [one.request_overrides for one in requests] == [
        {"n": 2, "vllm_xargs": {"mine": 1, "yours": 2, **both}},
        {"vllm_xargs": {"mine": 1, "sauce_forget": ["cat"], "sauce_strength": 1.0}},
        {"vllm_xargs": {"mine": 1, **both}},
    ]


def test_each_mask_is_tried_before_anything_is_measured(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answers |= {NOBODY: UNKNOWN, "dgo": (400, "did you mean 'dog'?")}
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(ConfigError, match="refuses dgo: did you mean 'dog'"):
        run(stub.url, Asking((("cat",), ("dgo",)), READ), extra_headers={"x-mine": "1"})
    asked = [body["vllm_xargs"]["sauce_forget"] for body in stub.bodies]
    assert asked[0] == [NOBODY] and sorted(asked[1:]) == [["cat"], ["dgo"]]
    assert {(b["model"], b["max_tokens"]) for b in stub.bodies} == {("tiny", 2)}
    assert stub.headers[0]["authorization"] == "Bearer secret"
    assert stub.headers[0]["x-mine"] == "1"


@pytest.mark.parametrize("answer", [(200, ""), (400, "runs without sauce")])
def test_a_server_that_does_not_hear_is_not_measured(
    stub: Stub, answer: tuple[int, str]
) -> None:
    """Without the plugin a server answers what nobody can forget."""
    stub.answers[NOBODY] = answer
    with pytest.raises(ConfigError, match=f"does not hear.*{answer[0]} '{answer[1]}"):
        run(stub.url, Asking((("dog",),), READ))


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/v1/responses", "input"),
    ],
)
def test_the_trial_goes_where_the_requests_go(
    stub: Stub, route: str, field: str
) -> None:
    stub.answers[NOBODY] = UNKNOWN
    run(stub.url, Asking((("dog",),), READ), api_url=stub.url + route)
    assert all(field in body for body in stub.bodies)


def test_no_other_backend_is_measured(stub: Stub) -> None:
    with pytest.raises(ConfigError, match="--backend vllm-rerank"):
        run(
            stub.url,
            Asking((("dog",),), READ),
            api_url=f"{stub.url}/v1/rerank",
            endpoint_type="vllm-rerank",
        )
    assert not stub.bodies


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no server answers at http://127.0.0.1:9/"):
        run("http://127.0.0.1:9", Asking((("dog",),), READ))


@pytest.mark.parametrize(
    "given",
    [
        {"extra_body": {"vllm_xargs": {"sauce_strength": 2.0}}},
        {"input_requests": [Sample(request_overrides={"vllm_xargs": {"sauce": 1}})]},
    ],
)
def test_two_wishes_are_one_too_many(stub: Stub, given: dict[str, Any]) -> None:
    stub.answers[NOBODY] = UNKNOWN
    with pytest.raises(ConfigError, match="leave one of them out"):
        run(stub.url, Asking((("dog",),), READ), **given)


def test_concepts_of_pictures_want_pictures(stub: Stub, admission: Admission) -> None:
    stub.answers[NOBODY] = UNKNOWN
    asking = Asking((("seen",),), admission.bundle.catalogue)
    with pytest.raises(ConfigError, match="seen would be forgotten in pictures only"):
        run(stub.url, asking)
    for sample in (
        Sample(multi_modal_data={"image": 1}),
        Sample(chat_messages=[{}]),
        Sample(prompt=[{"role": "user"}]),
    ):
        assert run(stub.url, asking, input_requests=[sample])
    assert run(stub.url, Asking((("seen", "read"),), asking.catalogue))
    with pytest.raises(ConfigError, match="requests of text want --sauce-bundle"):
        run(stub.url, Asking((("read",),)))


def command_line(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "plugin": [["sauce"]],
            "sauce_bundle": None,
            "sauce_bench_forget": Wish(("seen",)),
            "seed": 0,
            **given,
        }
    )


def test_a_command_line_says_what_is_asked(bundle_dir: Path) -> None:
    """Names need no bundle; random ones are drawn from one."""
    assert Asking.of(command_line()).masks == (("seen",),)
    drawn = Asking.of(
        command_line(sauce_bundle=str(bundle_dir), sauce_bench_forget=Wish(num_masks=2))
    )
    assert sorted(drawn.masks) == [("both",), ("read",)]
    assert drawn.catalogue is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"plugin": None}, "add --plugin sauce"),
        ({"sauce_bench_forget": Wish(num_masks=2)}, "add --sauce-bundle"),
        ({"sauce_bundle": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
def test_a_wrong_command_line_ends_before_a_run(
    given: dict[str, Any], says: str
) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{says}"):
        client._main(pytest.fail, command_line(**given))


def test_failed_requests_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their figures are of the others."""
    monkeypatch.setattr("vllm_sauce.plugin.compat.hook", lambda *a: None)

    def main(failed: int) -> Callable[..., Any]:
        return lambda args: {"failed": failed}

    assert client._main(main(0), command_line()) == {"failed": 0}
    with pytest.raises(SystemExit, match="3 of the benchmark's requests failed"):
        client._main(main(3), command_line())


def test_without_the_flag_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_sauce.plugin.compat.hook", pytest.fail)
    args = command_line(sauce_bench_forget=None)
    assert client._main(lambda args: "figures", args) == "figures"
