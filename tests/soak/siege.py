# SPDX-License-Identifier: Apache-2.0
"""A server under good and malicious requests at once; good ones must not notice."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.places import ROOT
from tests.plugin.support import LOGPROBS, MODEL, Reply, scale_out
from tests.soak import calls, malice, records
from tests.soak.answers import Answers, difference
from tests.soak.universe import MANY_MASKS, REQUESTS

TOLERANCE = 2e-3
"""Of log-probabilities, as the server's tests have it."""

ATTACKERS = 8
GOOD_CLIENTS = 3
GOOD_AT_LEAST = 60
"""Good answers beside each kind, however fast the kind is through."""

EXAMPLES = 3

GOOD = tuple(
    request
    for request in REQUESTS
    # As the pixels come over HTTP they come offline only for these modes.
    if not {"p4", "p5", "e0", "e1"} & set(request.pictures)
)


def good_call(rng: random.Random) -> calls.Call:
    """Return a request of an ordinary client."""
    request, max_tokens = rng.choice(GOOD), rng.randint(1, 6)
    kind = rng.randrange(8)
    if kind == 0:
        two = calls.chat(request, max_tokens, n=2, temperature=1)
        return replace(two, expect="sampled")
    if kind < 3:
        return calls.chat(request, max_tokens, stream=True)
    if kind == 3:
        choice = {"structured_outputs": {"choice": ["yes", "no"]}, "ignore_eos": False}
        body = calls.chat_body(request, 6, **choice)
        return calls.Call(calls.CHAT, calls.as_json(body), "a choice")
    if kind == 4:
        content = calls.as_json(calls.chat_body(request, 50))
        leave_after_s = rng.random() / 5
        return calls.Call(calls.CHAT, content, "any", leave_after_s=leave_after_s)
    return calls.chat(request, max_tokens)


class Siege:
    """What clients of one server saw."""

    def __init__(self, address: str, answers: Answers) -> None:
        self.address = address
        self.answers = answers

    async def ask(
        self, client: httpx.AsyncClient, call: calls.Call
    ) -> tuple[str, str | None]:
        """Return the status, and how the answer is not what it must be."""
        send = client.post(call.path, content=call.content, headers=call.headers)
        try:
            async with asyncio.timeout(call.leave_after_s):
                reply = await send
        except TimeoutError:
            return "left", None
        except httpx.HTTPError as error:
            return type(error).__name__, f"no answer: {error!r}"
        return str(reply.status_code), self.judge(call, reply.status_code, reply.text)

    def judge(self, call: calls.Call, status: int, text: str) -> str | None:
        """Say how an answer is not what it must be, None if it is."""
        problem = f"{status} to {call.path} {call.name}: {text[:300]}"
        if call.expect == "any" and status != 200:
            return None
        if call.expect == "refused":
            return None if 400 <= status < 500 else problem
        if call.expect == "unserved":
            return None if status >= 400 else problem
        if status != 200:
            return problem
        if call.expect == "a choice":
            said = json.loads(text)["choices"][0]["message"]["content"]
            return None if said in ("yes", "no") else problem
        return None if call.request is None else self.compare(call, text)

    def compare(self, call: calls.Call, text: str) -> str | None:
        """Compare every answer in a response with the cold engine's."""
        assert call.request is not None
        want = self.answers.get(call.request)
        assert want is not None, call.request
        try:
            if text.startswith("data:"):
                got = [calls.reply_of_stream(text)]
            else:
                got = calls.replies_of(json.loads(text))
        except (KeyError, TypeError, ValueError):
            return f"{call.request}: cannot be read: {text[:500]}"
        for reply in got:
            if len(reply.tokens) != call.max_tokens:
                return f"{call.request}: {len(reply.tokens)} tokens"
            found = (
                _first_difference(reply, want)
                if call.expect == "sampled"
                else difference(reply, want, TOLERANCE)
            )
            if found:
                return f"{call.request}: {found}"
        return None

    async def run(self, name: str, make: malice.Make, each: int) -> dict[str, Any]:
        """Send all of a kind while good clients go on; return what came of it."""
        statuses: Counter[str] = Counter()
        by_name: Counter[str] = Counter()
        good: Counter[str] = Counter()
        broken: list[str] = []
        wrong: list[str] = []
        over = asyncio.Event()
        todo = iter(range(each))

        async def attack() -> None:
            for i in todo:
                call = make(i)
                status, problem = await self.ask(client, call)
                statuses[status] += 1
                by_name[f"{call.name}: {status}"] += 1
                if problem:
                    broken.append(problem)

        async def behave(rng: random.Random) -> None:
            for at in count():
                if over.is_set() and at >= GOOD_AT_LEAST // GOOD_CLIENTS:
                    return
                call = good_call(rng)
                status, problem = await self.ask(client, call)
                good["asked"] += 1
                good["compared"] += status == "200" and call.request is not None
                if problem:
                    wrong.append(problem)

        # A server closes what is idle; a request must not meet that.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(
                base_url=self.address, timeout=120, limits=limits, trust_env=False
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for worker in range(GOOD_CLIENTS):
                tasks.create_task(behave(random.Random(f"{name} {worker}")))
            await asyncio.gather(*(attack() for _ in range(ATTACKERS)))
            over.set()
        return {
            "kind": name,
            "sent": sum(statuses.values()),
            "statuses": dict(statuses),
            "statuses_by_name": dict(by_name),
            "unexpected": len(broken),
            "unexpected_examples": broken[:EXAMPLES],
            "good": good["asked"],
            "good_compared": good["compared"],
            "good_differences": len(wrong),
            "good_examples": wrong[:EXAMPLES],
        }


def _first_difference(got: Reply, want: Reply) -> str | None:
    """Compare the first token's choices; the one that was drawn may stand for another.

    Only the first: what follows depends on the draw.
    """
    mine, right = dict(got.logprobs[0]), dict(want.logprobs[0])
    shared = mine.keys() & right.keys()
    off = max(abs(mine[token] - right[token]) for token in shared)
    if len(shared) < LOGPROBS - 1 or not off <= TOLERANCE:
        return f"the first token's choices are {mine}, right is {right}"
    return None


@contextmanager
def server(bundle: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a server with little room in every cache."""
    from tests.plugin.test_server import free_port, serve, wait_until_healthy
    from tests.soak.engine import LIMITS

    port = free_port()
    limits = [
        text
        for name, value in LIMITS.items()
        # Preemption on V1 can end vLLM's engine: see ``_send_pictures_whole``.
        if name != "num_gpu_blocks_override"
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    process = serve(
        str(MODEL),
        *("--plugin", "sauce", "--sauce-bundle", str(bundle), *scale_out()),
        *("--dtype", "float32", "--enforce-eager", "--block-size", "32", *limits),
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        log=log,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, address, log)
        yield process, address
    finally:
        process.terminate()
        process.wait(timeout=60)


def engines(process: subprocess.Popen[bytes]) -> set[int]:
    """Return the ids of a server's processes, the engine's among them."""
    import psutil

    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}


def is_up(address: str) -> bool:
    """Ask the server for its health."""
    try:
        return httpx.get(f"{address}/health", timeout=30).is_success
    except httpx.HTTPError:
        return False


def run(each: int, only: str, bundle: Path, deadline: float) -> bool:
    """Run the kinds that have not been run; tell whether anything was ever wrong."""
    known = records.answers_file("v1", bundle)
    if Answers(known).missing((*REQUESTS, *MANY_MASKS)):
        learn = [sys.executable, "-m", "tests.soak", "engine", "--steps", "0"]
        subprocess.run(learn, cwd=ROOT, check=True)
    done = records.Records(records.STATE / "server.jsonl", records.code_id())
    ran = {row["kind"] for row in done.rows if row["sent"] >= each}
    kinds = [(n, make) for n, make in malice.kinds() if only in n and n not in ran]
    while kinds and time.monotonic() < deadline:
        with server(bundle, records.STATE / "server.log") as (process, address):
            siege = Siege(address, Answers(known))
            while kinds and time.monotonic() < deadline:
                name, make = kinds.pop(0)
                before, started = engines(process), time.monotonic()
                row = asyncio.run(siege.run(name, make, each))
                row["up"] = process.poll() is None and is_up(address)
                row["same_processes"] = row["up"] and engines(process) == before
                row["seconds"] = round(time.monotonic() - started, 1)
                done.add(row)
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
                if not row["same_processes"]:
                    break
    return any(is_bad(row) for row in done.rows)


def is_bad(row: dict[str, Any]) -> bool:
    """Tell whether something went otherwise than it must."""
    bad = row["unexpected"] or row["good_differences"] or not row["same_processes"]
    return bool(bad)
