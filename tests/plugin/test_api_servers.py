# SPDX-License-Identifier: Apache-2.0
"""Two API processes before two engines (data parallelism): all forget alike."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

import vllm_sauce
from tests.cli.sauce import sauce
from tests.examples.test_examples import run as run_example
from tests.places import ROOT
from tests.plugin.conftest import RUNNER
from tests.plugin.test_server import ONE_PROCESS, free_port, serve, wait_until_healthy

pytestmark = [
    pytest.mark.feature("data parallelism, several API processes"),
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

TINY = ROOT / "examples/tiny"
COUNT = 2
HERE = {"VLLM_HOST_IP": "127.0.0.1"}
"""Where engines meet."""


class Server(NamedTuple):
    """A running server."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two API processes before two engines, "plane" forgotten in every request.

    As an operator writes it who knows vLLM's YAML.
    """
    folder, port = tmp_path_factory.mktemp("api"), free_port()
    config, log = folder / "serve.yaml", folder / "log"
    options = {
        "model": str(TINY / "model"),
        "served-model-name": ["tiny", "sauce-tiny"],
        "plugin": "sauce",
        "sauce-bundle": str(TINY / "bundle"),
        "sauce-forget": ["plane", "pizza"],
        "api-server-count": COUNT,
        "data-parallel-size": COUNT,
        "dtype": "float32",
        "max-model-len": 256,
        "max-num-seqs": 4,
        "enforce-eager": True,
        "host": "127.0.0.1",
        "port": port,
    }
    config.write_text(json.dumps(options))  # JSON is YAML
    process = serve("--config", str(config), log=log, environ=ONE_PROCESS | HERE)
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    yield Server(address, process, log)
    process.terminate()
    process.wait(timeout=60)


def picture_of(concept: str) -> str:
    """Return a shipped picture of a concept as a data URL."""
    labels = map(json.loads, (TINY / "pictures/labels.jsonl").open())
    row = next(row for row in labels if concept in row["concepts"])
    data = (TINY / "pictures" / str(row["file"])).read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def post(server: Server, concept: str, body: Any) -> tuple[httpx.Response, int]:
    """Ask what a picture shows, over a connection of its own.

    Returns the reply and the number of the process that gave it.
    """
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
    url = f"{server.address}/v1/chat/completions"
    with httpx.Client(timeout=120) as client:
        reply = client.post(url, json=ask | body)
        stream = reply.extensions["network_stream"]
        port = stream.get_extra_info("client_addr")[1]
        for child in psutil.Process(server.process.pid).children(recursive=True):
            ends = [end.raddr for end in child.net_connections("tcp") if end.raddr]
            if port in [end.port for end in ends]:
                return reply, child.pid
    pytest.fail(f"no process has the connection from port {port}")


def by_every_process(ask: Callable[[], int]) -> None:
    """Repeat a request until each API process has answered it twice."""
    by: list[int] = []
    for _ in range(100):
        by.append(ask())
        if len(set(by)) == COUNT and all(by.count(pid) >= 2 for pid in by):
            return
    pytest.fail(f"100 requests were answered by {set(by)} only")


def said(reply: httpx.Response) -> str:
    """Return the answer's text."""
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def test_each_process_edits_ordinary_requests(server: Server) -> None:
    """What is mandatory is forgotten, what is not is known; the engine lives on."""

    def ask() -> int:
        reply, pid = post(server, "plane", {})
        assert said(reply) != "plane"
        assert said(post(server, "cat", {})[0]) == "cat"
        return pid

    by_every_process(ask)
    assert "mandatory: plane, pizza" in server.log.read_text()
    # Whichever engine they chose: both have answered.
    answered = [
        line
        for line in httpx.get(f"{server.address}/metrics").text.splitlines()
        if line.startswith("vllm:request_success_total") and not line.endswith(" 0.0")
    ]
    assert {line.split('engine="')[1][0] for line in answered} == {"0", "1"}


def test_a_node_that_edits_nothing_ends_the_start(tmp_path: Path) -> None:
    """An engine elsewhere, of another configuration, gets no request."""
    ports = free_port(), free_port()
    every = (
        *(str(TINY / "model"), "--dtype", "float32", "--max-model-len", "256"),
        *("--max-num-seqs", "4", "--enforce-eager", "--data-parallel-size", "2"),
        *("--data-parallel-size-local", "1", "--data-parallel-address", "127.0.0.1"),
        *("--data-parallel-rpc-port", str(ports[0])),
    )
    forgets = "--plugin", "sauce", "--sauce-bundle", str(TINY / "bundle")
    node = serve(
        *(*every, "--headless", "--data-parallel-start-rank", "1"),
        log=tmp_path / "node",
        environ=HERE,
    )
    head = serve(
        *(*every, *forgets, "--sauce-forget", "plane", "--port", str(ports[1])),
        log=tmp_path / "head",
        environ=HERE,
    )
    try:
        assert head.wait(timeout=300) != 0
    finally:
        os.killpg(node.pid, signal.SIGKILL)
    said = (tmp_path / "head").read_text()
    assert "this process and the engine disagree about sauce" in said
    assert "Application startup complete" not in said


def test_each_process_edits_what_a_request_asks_for(server: Server) -> None:
    """And counts it: what one of them tells of is the sum of both."""
    asked = 0

    def ask() -> int:
        nonlocal asked
        reply, pid = post(server, "cat", vllm_sauce.forget_body("cat"))
        assert said(reply) != "cat"
        assert json.loads(reply.headers["sauce-forget"]) == {"cat": 1.0}
        asked += 1
        return pid

    by_every_process(ask)
    told = httpx.get(f"{server.address}/metrics").text.splitlines()
    assert f'sauce_concept_requests_total{{concept="cat"}} {asked}.0' in told


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (vllm_sauce.forget_body("caat"), "did you mean 'cat'"),
        ({**vllm_sauce.forget_body("cat"), "use_beam_search": True}, "beam"),
        ({"sauce_forget": ["cat"]}, "vllm_xargs"),
    ],
)
def test_each_process_refuses(server: Server, body: dict[str, Any], says: str) -> None:
    def ask() -> int:
        reply, pid = post(server, "cat", body)
        assert reply.status_code == 400, reply.text
        assert says in reply.text
        return pid

    by_every_process(ask)


def test_the_example_asks_it(server: Server) -> None:
    """With the ordinary client the dog is named, and then forgotten."""
    said = run_example("examples/serve_and_ask.py", f"{server.address}/v1")
    lines = [line for line in said.splitlines() if " -> " in line]
    assert "dog" in lines[0].split(" -> ")[1]
    assert "dog" not in lines[1].split(" -> ")[1]


def test_a_bundle_is_measured_through_it(server: Server, tmp_path: Path) -> None:
    """``sauce eval --url``: whole answers of the server; a second run asks nothing."""
    command = [
        *("eval", TINY / "bundle", "--model", "tiny", "--url", f"{server.address}/v1"),
        *("--concepts", TINY / "concepts.yaml", "--out", tmp_path / "eval"),
        *("--concept", "dog", "--concept", "soccer", "--concept", "wood"),
        *("--positives", "3", "--negatives", "3", "--together", "2"),
        *("--watched", "0", "--eliminated", "0", "--sets", "1", "--set-examples", "5"),
    ]
    done = sauce(*command)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "eval/results.json").read_text())["means"]
    means = {m: {n: f["value"] for n, f in s.items()} for m, s in found.items()}
    # Two others are forgotten in every request here, which has its cost: compared.
    assert means["ours"]["UAg"] > max(means["plain"]["UAg"], means["prompt"]["UAg"])
    # A ban keeps the word from what is written, not from what is known.
    assert means["ban"]["UAg"] == 1
    assert means["ours"]["UAd"] > means["ban"]["UAd"]
    assert found["plain"]["UAg"]["n"] == found["ours"]["UAg"]["n"] > 0
    answers = (tmp_path / "eval/answers.jsonl").stat().st_mtime_ns
    assert sauce(*command).exit_code == 0
    assert (tmp_path / "eval/answers.jsonl").stat().st_mtime_ns == answers
    other = sauce(*command[:-1], "5", "--asked-tokens", "4")
    assert other.exit_code == 2 and "differs in answer_tokens" in other.output
