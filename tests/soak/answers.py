# SPDX-License-Identifier: Apache-2.0
"""What each request is answered alone on a cold engine, kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tests.plugin.support import Reply
from tests.soak.universe import Request

TOLERANCE = 2e-4
"""Of log-probabilities: the order of floating-point sums, as ``Reply.close`` has it."""


class Answers:
    """Answers of one universe on one runner, one line of JSON each."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Reply] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                # The last line of a run that was killed may be cut short.
                if line.endswith("}"):
                    row = json.loads(line)
                    self._known[row["request"]] = _reply(row)

    def get(self, request: Request) -> Reply | None:
        """Return the cold answer, None where it is not known yet."""
        return self._known.get(request.key)

    def put(self, request: Request, reply: Reply) -> None:
        """Keep a cold answer."""
        self._known[request.key] = reply
        if self._path is not None:
            row = {"request": request.key, "tokens": reply.tokens}
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(row | {"logprobs": reply.logprobs}))

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """Return the requests that have an answer, and none that is known."""
        wanted = sorted({request for request in requests if not request.refused})
        return [request for request in wanted if request.key not in self._known]

    def against(self, other: Answers) -> tuple[int, list[str]]:
        """Compare with another runner's: how many are shared, and what differs."""
        shared = sorted(self._known.keys() & other._known.keys())
        found = {
            key: difference(self._known[key], other._known[key], 1e-3) for key in shared
        }
        return len(shared), [f"{key}: {text}" for key, text in found.items() if text]


def _reply(row: dict[str, list[list[list[float]]]]) -> Reply:
    return Reply(
        tokens=tuple(row["tokens"]),  # type: ignore[arg-type]
        logprobs=tuple(
            tuple((int(token), value) for token, value in step)
            for step in row["logprobs"]
        ),
        cached=0,
    )


def difference(got: Reply, want: Reply, tolerance: float = TOLERANCE) -> str | None:
    """Say how an answer, or its beginning, is not the wanted one; None if it is.

    Two tokens that are as likely as each other may change places; what follows them is
    then another text and is not looked at (``is_tie`` tells).
    """
    for at, (mine, theirs) in enumerate(zip(got.logprobs, want.logprobs, strict=False)):
        if text := _step_difference(dict(mine), dict(theirs), tolerance):
            return f"token {at}: {text}"
        if got.tokens[at] != want.tokens[at]:
            chosen = dict(theirs)
            gap = chosen[want.tokens[at]] - chosen.get(got.tokens[at], float("-inf"))
            if gap > 2 * tolerance:
                return f"token {at}: {got.tokens[at]} where {want.tokens[at]} is right"
            return None
    if len(got.tokens) > len(want.tokens):
        return f"{len(got.tokens)} tokens where at most {len(want.tokens)} are right"
    return None


def is_tie(got: Reply, want: Reply) -> bool:
    """Tell whether an answer that is no different took another of two equal tokens."""
    return got.tokens != want.tokens[: len(got.tokens)]


def _step_difference(
    mine: dict[int, float], theirs: dict[int, float], tolerance: float
) -> str | None:
    for token in mine.keys() | theirs.keys():
        # What is not among the likeliest is at most as likely as the last of them.
        a = mine.get(token, min(mine.values()))
        b = theirs.get(token, min(theirs.values()))
        missing = token not in mine or token not in theirs
        over = max(a, b) - min(a, b) if not missing else _over(token, mine, theirs)
        if over > tolerance or over != over:
            return f"log-probability of {token} is {a:.5f}, right is {b:.5f}"
    return None


def _over(token: int, mine: dict[int, float], theirs: dict[int, float]) -> float:
    has, lacks = (mine, theirs) if token in mine else (theirs, mine)
    return has[token] - min(lacks.values())
