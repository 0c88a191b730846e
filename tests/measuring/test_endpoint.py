# SPDX-License-Identifier: Apache-2.0
"""Asking a server; tests/plugin/test_api_servers.py measures through a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vllm_sauce.errors import SauceError
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.questions import Question
from vllm_sauce.measuring.endpoint import EndpointAsker

Serve = Callable[[dict[str, str]], EndpointAsker]
WHAT = Question(prompt="What?")
PLAIN, MASKED = Ask(question=WHAT), Ask(question=WHAT, forget=("dog",))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers "a dog" under headers of one's choice."""
    started = []

    def start(headers: dict[str, str]) -> EndpointAsker:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                message = {"role": "assistant", "content": " a dog"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                body = {"id": "x", "object": "chat.completion", "choices": [choice]}
                self.send_response(200)
                for name, value in {
                    **headers,
                    "content-type": "application/json",
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return EndpointAsker(f"http://127.0.0.1:{server.server_port}/v1", "tiny")

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_server_that_forgets_says_so(serve: Serve) -> None:
    asker = serve({"sauce-forget": '{"dog": 1.0}'})
    assert [answer.text for answer in asker.ask([PLAIN, MASKED])] == ["a dog"] * 2


@pytest.mark.parametrize("said", ['{"cat": 0.5, "dog": 2}', "1"])
def test_it_may_forget_more(serve: Serve, said: str) -> None:
    """A policy's strength; a number stands for a long list."""
    assert serve({"sauce-forget": said}).ask([MASKED])[0].text == "a dog"


@pytest.mark.parametrize("said", ["{}", '{"cat": 1.0}', '{"dog": 0.5}', "0", "dog"])
def test_one_that_forgets_something_else_is_not_measured(
    serve: Serve, said: str
) -> None:
    """A server with a policy says "{}" where a proxy has dropped ``vllm_xargs``."""
    with pytest.raises(SauceError, match="asked to forget dog"):
        serve({"sauce-forget": said}).ask([MASKED])


def test_one_that_does_not_is_not_measured(serve: Serve) -> None:
    """A stock vLLM ignores ``vllm_xargs`` it does not know, and answers 200."""
    asker = serve({})
    assert [answer.text for answer in asker.ask([PLAIN])] == ["a dog"]
    with pytest.raises(
        SauceError, match="asked to forget dog, and its answer does not"
    ):
        asker.ask([PLAIN, MASKED])
