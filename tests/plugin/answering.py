# SPDX-License-Identifier: Apache-2.0
"""Answers requests in a process of its own, by an engine after which no other starts.

``python -m tests.plugin.answering BUNDLE OPTIONS ASKS`` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.plugin.conftest import engine
from tests.plugin.support import LONG, MODEL, Ask, Reply, run

MASKS: tuple[tuple[str, ...], ...] = ((), ("seen",), ("read",), ("both",))
ASKS = [
    Ask(number, question, mask, max_tokens=12)
    for number, question in enumerate(("is there a dog in the picture ?", LONG))
    for mask in MASKS
]
_MARK = "ANSWERS "


@dataclass(frozen=True)
class Answers:
    """What an engine answered."""

    replies: Sequence[tuple[Reply, Reply]]
    """To each of what is asked: as one batch, then in another order and warm."""

    drafted: dict[str, float]
    """Counts of speculation."""

    reports: Sequence[dict[str, Any]]
    """Of each of its ranks."""


def apart(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run Python, with what this process imports from."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VLLM_HOST_IP": "127.0.0.1",  # where several ranks meet
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def answers(bundle: Path, asks: Sequence[Ask] = ASKS, **options: Any) -> Answers:
    """Start an engine in a process of its own; return what it answers."""
    asked = json.dumps([asdict(ask) for ask in asks])
    done = apart("-m", "tests.plugin.answering", bundle, json.dumps(options), asked)
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found = json.loads(line.removeprefix(_MARK))
            pairs = [(_reply(*one), _reply(*other)) for one, other in found["replies"]]
            return Answers(pairs, found["drafted"], found["reports"])
    if "Model Runner V2 does not yet support" in done.stderr:
        pytest.skip("this vLLM's runner V2 cannot do this")
    if "Cannot inspect kernel parameters for function" in done.stderr:
        pytest.skip("vLLM 0.30 cannot check drafts on a CPU, plain ones neither")
    pytest.fail(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _reply(tokens: list[int], logprobs: list[Any], cached: int) -> Reply:
    steps = tuple(tuple(map(tuple, step)) for step in logprobs)
    return Reply(tuple(tokens), steps, cached)  # type: ignore[arg-type]


def main(bundle: str, options: str, asked: str) -> None:
    """Answer all, twice, and print it."""
    asks = [Ask(**ask) for ask in json.loads(asked)]
    llm = engine(
        MODEL,
        {"bundle": bundle},
        disable_log_stats=False,
        max_num_batched_tokens=128,
        **json.loads(options),
    )
    replies = run(llm, asks)
    again = run(llm, asks[::-1])[::-1]
    drafted = {
        metric.name.rpartition("num_")[2]: metric.value
        for metric in llm.get_metrics()
        if metric.name.startswith("vllm:spec_decode_num_") and hasattr(metric, "value")
    }
    found = {
        "drafted": drafted,
        "reports": llm.collective_rpc("sauce_report"),
        "replies": [
            [[one.tokens, one.logprobs, one.cached] for one in pair]
            for pair in zip(replies, again, strict=True)
        ],
    }
    sys.stdout.write(f"{_MARK}{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
