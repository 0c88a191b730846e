# SPDX-License-Identifier: Apache-2.0
"""The page of figures, from the lines that were kept."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tests.soak.answers import Answers
from tests.soak.records import STATE, Records, answers_file, code_id
from tests.soak.siege import is_bad

HEAD = """# Soak

Random schedules on one engine, and a server under attack; every answer is compared with
that of the same request alone on a cold engine: tokens, and log-probabilities within
2e-4 (2e-3 over HTTP). sauce-tiny and a bundle of random SAEs whose edits move every
answer, float32, eager; 8 requests at once, 160 tokens a step, an encoder cache for
three pictures; the engine has 23 KV blocks, the server enough. vLLM
{vllm}, {cores} CPU cores, no GPU, {date}.

A soak that stops goes on when it is started again; a change of the code starts it anew.
"""

ENGINE = """
## Engine

    scripts/soak engine --runner v1 --steps 10000 --report docs/benchmarks/soak.md
    scripts/soak engine --runner v2 --steps 10000 --report docs/benchmarks/soak.md

Requests have none to three pictures (pixels in six sizes and modes, embeddings, the
same one twice), short and long questions, no mask or one of eight at the vision site,
the decoder or both. Steps are vLLM's own; between them requests come, alone and with
the same pictures under other masks, are aborted, and caches are emptied. Refused are
vision masks on embeddings, unknown concepts and forged cache keys.

"""

SERVER = """
## Server

    scripts/soak server --each 200 --report docs/benchmarks/soak.md

Eight clients send a kind of malicious request while three send good ones: plain and
masked, streamed, two answers at once, structured outputs, connections broken off.
*Unexpected* are statuses or answers that the kind must not get; *differences* are good
answers that a cold engine would not have given. After each kind the server must be
healthy, and its processes the same.

"""

ROWS = (
    "steps",
    "schedules",
    "requests",
    "masked requests",
    "requests with embeddings",
    "embeddings by name",
    "finished",
    "aborted",
    "compared",
    "ties",
    "refused at admission",
    "refused in the core",
    "prefix cache hits",
    "encoder cache hits",
    "pictures encoded",
    "preemptions",
    "batches of several masks",
    "encoder runs of several masks",
    "resets of prefix",
    "resets of pictures",
    "resets of encoder",
)


def page(bundle: Path) -> str:
    """Return all that is known of the code as it is."""
    import vllm

    code = code_id()
    today = datetime.date.today().isoformat()
    text = HEAD.format(vllm=vllm.__version__, cores=os.cpu_count(), date=today)
    engines = {
        runner: Records(STATE / f"engine-{runner}.jsonl", code).rows
        for runner in ("v1", "v2")
    }
    if any(engines.values()):
        text += ENGINE + _engine_table(engines)
        v1, v2 = (Answers(answers_file(runner, bundle)) for runner in ("v1", "v2"))
        shared, wrong = v1.against(v2)
        text += f"\nCold answers that V1 and V2 both gave: {shared}; "
        text += f"other than within 1e-3: {len(wrong)}.\n"
    if rows := Records(STATE / "server.jsonl", code).rows:
        text += SERVER + _server_table(rows)
    return text


def _engine_table(engines: dict[str, list[dict[str, Any]]]) -> str:
    columns = {runner: rows for runner, rows in engines.items() if rows}
    lines = ["| | " + " | ".join(r.upper() for r in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    totals = {runner: Counter[str]() for runner in columns}
    for runner, rows in columns.items():
        for row in rows:
            totals[runner].update(row["counts"])
    for name in ROWS:
        cells = [f"{total[name]:,}" for total in totals.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    wrong = [sum("difference" in row for row in rows) for rows in columns.values()]
    lines.append("| **differences** | " + " | ".join(f"**{n}**" for n in wrong) + " |")
    seconds = [sum(row["seconds"] for row in rows) for rows in columns.values()]
    lines.append("| seconds | " + " | ".join(f"{s:,.0f}" for s in seconds) + " |")
    found = [
        f"\n```\n{row['difference']}\n```"
        for rows in columns.values()
        for row in rows
        if "difference" in row
    ]
    return "\n".join([*lines, *found]) + "\n"


def _server_table(rows: list[dict[str, Any]]) -> str:
    latest = {row["kind"]: row for row in rows}
    lines = [
        "| kind | sent | statuses | unexpected | good compared | differences | up |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for name, row in latest.items():
        statuses = ", ".join(f"{s}: {n}" for s, n in sorted(row["statuses"].items()))
        up = "yes" if row["same_processes"] else "**no**"
        lines.append(
            f"| {name} | {row['sent']} | {statuses} | {row['unexpected']} | "
            f"{row['good_compared']} | {row['good_differences']} | {up} |"
        )
    good = sum(row["good_compared"] for row in latest.values())
    sent = sum(row["sent"] for row in latest.values())
    bad = [name for name, row in latest.items() if is_bad(row)]
    lines.append(
        f"\n{sent:,} malicious requests of {len(latest)} kinds, {good:,} good answers "
        f"compared; kinds with something unexpected: {', '.join(bad) or 'none'}."
    )
    return "\n".join(lines) + "\n"
