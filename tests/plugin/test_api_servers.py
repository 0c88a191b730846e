# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --api-server-count 2``: all API processes forget alike."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import vllm_sauce
from tests.plugin.conftest import RUNNER
from tests.plugin.support import REPO
from tests.plugin.test_server import free_port, serve, wait_until_healthy

pytestmark = pytest.mark.skipif(
    RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
)

TINY = REPO / "examples/tiny"
COUNT = 2
# vLLM names the process in front of each line of the access log.
SERVED = re.compile(r"\(ApiServer_(\d)[^)]*\).*POST /v1/\S+ HTTP/1\.1\W* (\d+)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Two API processes before one engine, "dog" forgotten in every request.

    As an operator writes it who knows vLLM's YAML; yields address and log.
    """
    folder, port = tmp_path_factory.mktemp("api"), free_port()
    config, log = folder / "serve.yaml", folder / "log"
    options = {
        "model": str(TINY / "model"),
        "served-model-name": "tiny",
        "plugin": "sauce",
        "sauce-bundle": str(TINY / "bundle"),
        "sauce-forget": ["dog", "airplane"],
        "api-server-count": COUNT,
        "dtype": "float32",
        "max-model-len": 256,
        "max-num-seqs": 4,
        "enforce-eager": True,
        "host": "127.0.0.1",
        "port": port,
    }
    config.write_text(json.dumps(options))  # JSON is YAML
    process = serve("--config", str(config), log=log)
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    yield address, log
    process.terminate()
    process.wait(timeout=60)


def picture_of(concept: str) -> str:
    """Return a shipped picture of a concept as a data URL."""
    labels = map(json.loads, (TINY / "pictures/labels.jsonl").open())
    row = next(row for row in labels if concept in row["concepts"])
    data = (TINY / "pictures" / str(row["file"])).read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def post(address: str, concept: str, body: Any) -> httpx.Response:
    """Ask what a picture shows, over a connection of its own."""
    content = [
        {"type": "image_url", "image_url": {"url": picture_of(concept)}},
        {"type": "text", "text": "What object is in the picture?"},
    ]
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 4,
    }
    return httpx.post(f"{address}/v1/chat/completions", json=ask | body, timeout=120)


def by_every_process(server: tuple[str, Path], ask: Callable[[str], None]) -> None:
    """Repeat a request until each API process has answered it twice."""
    address, log = server
    start = len(log.read_bytes())
    for _ in range(100):
        ask(address)
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
        by = [found[1] for line in lines if (found := SERVED.search(line))]
        if all(by.count(str(index)) >= 2 for index in range(COUNT)):
            return
    pytest.fail(f"answered by {by} only:\n" + "\n".join(lines[-20:]))


def said(reply: httpx.Response) -> str:
    """Return the answer's text."""
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def test_each_process_edits_ordinary_requests(server: tuple[str, Path]) -> None:
    """What is mandatory is forgotten, what is not is known; the engine lives on."""

    def ask(address: str) -> None:
        assert said(post(address, "dog", {})) != "dog"
        assert said(post(address, "cat", {})) == "cat"

    by_every_process(server, ask)
    log = server[1].read_text()
    assert "mandatory: dog, airplane" in log


def test_each_process_edits_what_a_request_asks_for(server: tuple[str, Path]) -> None:
    body = vllm_sauce.forget_body("cat")
    by_every_process(
        server, lambda address: _differs(said(post(address, "cat", body)), "cat")
    )


def _differs(answer: str, name: str) -> None:
    assert answer != name


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (vllm_sauce.forget_body("caat"), "did you mean 'cat'"),
        ({**vllm_sauce.forget_body("cat"), "use_beam_search": True}, "beam"),
        ({"sauce_forget": ["cat"]}, "vllm_xargs"),
    ],
)
def test_each_process_refuses(
    server: tuple[str, Path], body: dict[str, Any], says: str
) -> None:
    def ask(address: str) -> None:
        reply = post(address, "cat", body)
        assert reply.status_code == 400, reply.text
        assert says in reply.text

    by_every_process(server, ask)
