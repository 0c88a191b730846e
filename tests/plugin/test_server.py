# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --plugin sauce`` (its own process, compiled) and the OpenAI client."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import openai
import pytest

import vllm_sauce
from tests.batch.processes import descendants, gone, wait_until
from tests.places import ROOT
from tests.plugin.conftest import RUNNER
from tests.plugin.loaded_vllm import LoadedVLLM, loaded_vllm
from tests.plugin.support import picture

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

VLLM = Path(sys.executable).with_name("vllm")
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""An engine with its worker in it: a process less that loads vLLM. The server of this
file has them apart, as users' have."""


def inherited() -> dict[str, str]:
    """Return the environment of a user's command, whatever tests have set."""
    kept = {
        k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"
    }
    return {**kept, "VLLM_CPU_KVCACHE_SPACE": "1"}


def serve(
    *args: str,
    log: Path,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``vllm serve`` in a process group of its own, its output in a file."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(VLLM), "serve", *args],
            cwd=cwd,
            env={**inherited(), **(environ or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_healthy(
    process: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float = 400
) -> None:
    """Return once the server answers; fail with its output when it does not."""
    deadline = time.monotonic() + timeout_s
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("the server did not start:\n" + log.read_text()[-4000:])
        try:
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(NamedTuple):
    """A running server, and who it works for."""

    address: str
    log: Path
    process: subprocess.Popen[bytes]
    owner: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def server(
    model_dir: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A compiled server; yields its address. It works for a process that sleeps."""
    port = free_port()
    owner = subprocess.Popen(["sleep", "3600"])
    log = tmp_path_factory.mktemp("serve") / "log"
    process = serve(
        str(model_dir),
        *("--plugin", "sauce", "--sauce-bundle", str(bundle_dir)),
        *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8"),
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        "--enable-log-requests",
        log=log,
        environ={"SAUCE_PARENT": str(owner.pid)},
    )
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    yield Server(address, log, process, owner)
    owner.kill()
    process.terminate()
    process.wait(timeout=60)
    owner.wait()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    """The ordinary client."""
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def data_url(seed: int) -> str:
    """Return a test picture as a data URL."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def forget_body(*concepts: str, strength: float = 1.0) -> dict[str, Any]:
    """Return the helper's body, typed so that it can be spread into ``chat``."""
    return dict(vllm_sauce.forget_body(*concepts, strength=strength))


def chat(
    client: openai.OpenAI, seed: int = 1, uuid: str | None = None, **extra_body: Any
) -> Any:
    """Ask about a picture; returns the first choice."""
    named = {} if uuid is None else {"uuid": uuid}
    image: Any = {"type": "image_url", "image_url": {"url": data_url(seed)}, **named}
    reply = client.chat.completions.create(
        model="tiny",
        messages=[
            {
                "role": "user",
                "content": [
                    image,
                    {"type": "text", "text": "what is in the picture ?"},
                ],
            }
        ],
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=5,
        extra_body={"ignore_eos": True, **extra_body},
    )
    return reply.choices[0]


def numbers(choice: Any) -> list[float]:
    """Return the log-probabilities of an answer's tokens."""
    return [round(token.logprob, 3) for token in choice.logprobs.content]


def test_start_names_what_runs(server: Server) -> None:
    """One line tells bundle, sites, concepts and what is mandatory; then the canary."""
    log = server.log.read_text()
    (line,) = [text for text in log.splitlines() if "sauce: bundle" in text]
    assert "decoder.1, vision" in line
    assert "3 concepts" in line
    assert "mandatory: none" in line
    assert "canary passed at decoder.1, vision" in log
    # What cannot happen here is counted all the same: at 0, from the start.
    told = httpx.get(f"{server.address}/metrics").text.splitlines()
    assert 'sauce_requests_total{forgets="mandatory"} 0.0' in told


@pytest.mark.parametrize("concept", ["seen", "read", "both"])
def test_forgets_over_http(client: openai.OpenAI, concept: str) -> None:
    """Masked differs from unmasked, and unmasked stays itself afterwards."""
    before = numbers(chat(client))
    masked = numbers(chat(client, **forget_body(concept)))
    assert masked != before
    assert numbers(chat(client)) == before
    assert numbers(chat(client, **forget_body(concept))) == masked


def test_an_answer_says_what_it_forgot(client: openai.OpenAI) -> None:
    """As the ordinary client shows an answer's headers; nothing says nothing."""
    raw = client.chat.completions.with_raw_response
    talk: Any = [{"role": "user", "content": "what is in the picture ?"}]
    body = forget_body("seen", "read", strength=2.0)
    masked = raw.create(model="tiny", messages=talk, max_tokens=1, extra_body=body)
    said = json.loads(masked.headers["sauce-forget"])
    assert said == {"read": 2.0, "seen": 2.0}
    plain = raw.create(model="tiny", messages=talk, max_tokens=1)
    assert not {"sauce-forget", "sauce-mask"} & set(plain.headers)


def test_concurrent_clients_keep_their_own_masks(client: openai.OpenAI) -> None:
    """Sixteen requests at once; each is answered as when it came alone."""
    bodies: list[dict[str, Any]] = [
        {},
        vllm_sauce.forget_body("seen"),
        vllm_sauce.forget_body("read"),
        vllm_sauce.forget_body("both", strength=2.0),
    ]
    alone = [numbers(chat(client, 2, **body)) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(lambda i: numbers(chat(client, 2, **bodies[i % 4])), range(16))
        )
    for i, got in enumerate(together):
        assert got == pytest.approx(alone[i % 4], abs=2e-3), i


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (vllm_sauce.forget_body("seeen"), "did you mean 'seen'"),
        ({"vllm_xargs": {"sauce_forgot": ["seen"]}}, "sauce_forgot"),
        ({"vllm_xargs": {"sauce_forget": [1]}}, "got int"),
        ({"vllm_xargs": {"sauce_forget": ["seen"], "sauce_strength": 99}}, "99"),
        (
            {"vllm_xargs": {"sauce_forget": ["seen"], "sauce_strength": "strong"}},
            "strength",
        ),
        ({"sauce_forget": ["seen"]}, "vllm_xargs"),
        ({**vllm_sauce.forget_body("seen"), "use_beam_search": True}, "beam"),
        ({"cache_salt": "sauce:x"}, "cache_salt"),
    ],
)
def test_bad_requests_get_400(
    client: openai.OpenAI, body: dict[str, Any], says: str
) -> None:
    """Each mistake is a 400 a person understands; others go on unharmed."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        beside = pool.submit(chat, client, 3)
        with pytest.raises(openai.BadRequestError, match=says):
            chat(client, 3, **body)
        assert numbers(beside.result()) == pytest.approx(
            numbers(chat(client, 3)), abs=2e-3
        )


@pytest.mark.parametrize(
    "bad",
    [
        vllm_sauce.forget_body("nobody"),
        {**vllm_sauce.forget_body("seen"), "use_beam_search": True},
        {"cache_salt": "sauce:x"},
        {"uuid": "sauce:x"},
    ],
)
def test_a_refused_request_leaves_its_pictures_neighbours_alone(
    client: openai.OpenAI, bad: dict[str, Any]
) -> None:
    """A refused and a good request about one new picture at a time, eight times."""
    first = 100 + 8 * len(repr(bad))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for seed in range(first, first + 8):
            refused = pool.submit(chat, client, seed, **bad)
            assert chat(client, seed).message.content
            with pytest.raises(openai.BadRequestError):
                refused.result()


def test_completions_and_responses_pass_admission(client: openai.OpenAI) -> None:
    """The other generation routes forget, and refuse, alike."""
    ask = {"model": "tiny", "prompt": "USER: what is in the picture ? ASSISTANT:"}
    body = {"ignore_eos": True, **vllm_sauce.forget_body("read")}
    plain = client.completions.create(**ask, max_tokens=4, temperature=0, logprobs=1)
    masked = client.completions.create(
        **ask, max_tokens=4, temperature=0, logprobs=1, extra_body=body
    )
    assert plain.choices[0].logprobs != masked.choices[0].logprobs
    bad = vllm_sauce.forget_body("reed")
    with pytest.raises(openai.BadRequestError, match="did you mean"):
        client.completions.create(**ask, extra_body=bad)
    with pytest.raises(openai.BadRequestError, match="did you mean"):
        client.responses.create(model="tiny", input="what is it ?", extra_body=bad)


def test_batch_route_passes_admission(client: openai.OpenAI) -> None:
    """Conversations sent as one body are edited, or refused, together."""
    talk = [{"role": "user", "content": "what is in the picture ?"}]
    ask = {"model": "tiny", "messages": [talk, talk], "max_tokens": 4, "logprobs": True}
    ask |= {"temperature": 0, "top_logprobs": 0}

    def answers(**body: Any) -> list[list[float]]:
        reply = client.post("/chat/completions/batch", body=ask | body, cast_to=object)
        return [
            [token["logprob"] for token in choice["logprobs"]["content"]]
            for choice in dict(cast(Any, reply))["choices"]
        ]

    plain, masked = answers(), answers(**vllm_sauce.forget_body("read"))
    assert len(masked) == 2 and all(m != p for m, p in zip(masked, plain, strict=True))
    with pytest.raises(openai.BadRequestError, match="did you mean"):
        answers(**vllm_sauce.forget_body("reed"))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedVLLM]:
    """What runs a command in a copy of a process that has loaded vLLM."""
    with loaded_vllm(tmp_path_factory.mktemp("commands"), inherited()) as loaded:
        yield loaded


def bench(
    commands: LoadedVLLM, server: Server, model_dir: Path, *args: str, tokens: int = 8
) -> tuple[int, str]:
    """Run ``vllm bench serve`` with six texts, five tokens each in answer."""
    return commands.run(
        *("bench", "serve", "--base-url", server.address, "--model", "tiny"),
        *("--tokenizer", str(model_dir), "--dataset-name", "random"),
        *("--random-input-len", str(tokens), "--random-output-len", "5"),
        *("--num-prompts", "6", "--temperature", "0", "--plugin", "sauce", *args),
    )


def test_bench_serve_sends_each_request_with_its_mask(
    commands: LoadedVLLM, server: Server, model_dir: Path, bundle_dir: Path
) -> None:
    """The server reads two masks in turn, whichever route the client asks."""
    for backend, route in (("openai", "completions"), ("openai-chat", "chat")):
        end = "chat/completions" if route == "chat" else route
        before = len(server.log.read_text())
        status, said = bench(
            *(commands, server, model_dir, "--backend", backend),
            *("--endpoint", f"/v1/{end}", "--sauce-bundle", str(bundle_dir)),
            *("--sauce-bench-forget", "random:2"),
        )
        assert status == 0, said[-3000:]
        assert re.search(r"Successful requests: +6\b", said)
        log = server.log.read_text()[before:]
        measured = [line for line in log.splitlines() if "max_tokens=5" in line]
        read = Counter(re.findall(r"'sauce_forget': (\S+?\])", "\n".join(measured)))
        assert read == {"['both']": 3, "['read']": 3}


def test_bench_serve_says_what_the_server_refuses(
    commands: LoadedVLLM, server: Server, model_dir: Path
) -> None:
    """It has another bundle than the client was given."""
    other = ("--sauce-bundle", str(ROOT / "examples/tiny/latents"))
    wish = ("--sauce-bench-forget", "dog")
    status, said = bench(commands, server, model_dir, *other, *wish)
    assert status == 1
    assert "the server refuses dog: unknown concept 'dog'" in said
    assert "Benchmark Result" not in said


def test_bench_serve_fails_with_its_requests(
    commands: LoadedVLLM, server: Server, model_dir: Path, bundle_dir: Path
) -> None:
    """Too long for the model, they are refused: 400."""
    wish = ("--sauce-bundle", str(bundle_dir), "--sauce-bench-forget", "read")
    status, said = bench(commands, server, model_dir, *wish, tokens=600)
    assert status == 1
    assert "6 of the benchmark's requests failed" in said


def test_its_processes_end_with_the_one_they_work_for(server: Server) -> None:
    """As an engine of a killed actor: nobody else would end it. The last test here."""
    processes = descendants(server.process.pid)
    assert len([p for p in processes if "VLLM" in " ".join(p.cmdline())]) == 2
    server.owner.kill()
    server.owner.wait()
    wait_until(lambda: gone(processes))
    assert server.process.wait(timeout=60) != 0
