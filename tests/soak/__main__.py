# SPDX-License-Identifier: Apache-2.0
"""``scripts/soak``: long random runs of an engine, or of a server under attack."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one piece of a soak; 1 if anything has ever gone wrong in it."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    engine = commands.add_parser(
        "engine", help="random steps of one engine, against single cold requests"
    )
    engine.add_argument("--runner", choices=("v1", "v2"), default="v1")
    engine.add_argument("--steps", type=int, default=10_000)
    server = commands.add_parser(
        "server", help="a server under good and malicious requests"
    )
    server.add_argument(
        "--each", type=int, default=200, help="requests of each malicious kind"
    )
    server.add_argument("--only", default="", help="kinds whose names have this")
    for command in (engine, server):
        command.add_argument("--report", type=Path, help="write what is known so far")
        command.add_argument(
            "--seconds", type=float, default=1e9, help="stop then; run again to go on"
        )
    args = parser.parse_args()
    # Both must stand before vLLM is imported; the server's engine is V1 on a CPU.
    os.environ["SAUCE_TEST_RUNNER"] = getattr(args, "runner", "v1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    deadline = time.monotonic() + args.seconds
    from tests.soak import report

    failed = run_engine(args, deadline) if args.command == "engine" else False
    if args.command == "server":
        from tests.soak import siege

        failed = siege.run(args.each, args.only, bundle(), deadline)
    if args.report is not None:
        args.report.write_text(report.page(bundle()), encoding="utf-8")
    return int(failed)


def bundle() -> Path:
    """Return the random bundle, written anew: it is small."""
    import shutil

    from tests.plugin.random_bundle import write_random_bundle
    from tests.plugin.support import MODEL
    from tests.soak.records import STATE

    shutil.rmtree(STATE / "bundle", ignore_errors=True)
    return write_random_bundle(STATE / "bundle", MODEL)


def run_engine(args: argparse.Namespace, deadline: float) -> bool:
    """Run blocks of schedules until there are steps enough or time is up."""
    import tests.plugin.conftest  # noqa: F401  # sets what vLLM reads when imported
    from tests.soak import records
    from tests.soak.answers import Answers
    from tests.soak.engine import Difference, Soak, run_block, soak_engine
    from tests.soak.universe import MANY_MASKS, REQUESTS

    path = bundle()
    done = records.Records(
        records.STATE / f"engine-{args.runner}.jsonl", records.code_id()
    )
    known = Answers(records.answers_file(args.runner, path))
    soak = Soak(soak_engine(path), known)
    if args.runner == "v1":  # V2 is slow here: it learns what it comes to need
        learnt = soak.learn((*REQUESTS, *MANY_MASKS))
        say(f"{learnt} requests asked alone on the cold engine")
    while steps_of(done.rows) < args.steps and time.monotonic() < deadline:
        before, started = dict(soak.counts), time.monotonic()
        number = len(done.rows)
        row: dict[str, Any] = {"runner": args.runner, "block": number, "seed": number}
        try:
            run_block(soak, number, schedules=5)
        except Difference as error:
            say(str(error))
            row["difference"] = str(error)
        row["counts"] = {k: v - before.get(k, 0) for k, v in soak.counts.items()}
        row["seconds"] = round(time.monotonic() - started, 1)
        done.add(row)
        say(f"block {number}: {steps_of(done.rows)} steps")
        if soak.broken:
            say("the engine is gone: run again to go on with another")
            break
    return any("difference" in row for row in done.rows)


def say(text: str) -> None:
    """Tell whoever runs this, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def steps_of(rows: list[dict[str, Any]]) -> int:
    """Return the steps that were run to their end."""
    return sum(row["counts"].get("steps", 0) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
