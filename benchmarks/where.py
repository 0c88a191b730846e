# SPDX-License-Identifier: Apache-2.0
"""Where a step's time goes when its requests are masked: functions, beside idle ones.

``python -m benchmarks.where [--model DIR] [--dummy] [--requests 256]``

One engine in this process answers the changing batches of ``benchmarks/engine.py``,
idle and with a row each: unprofiled, which says what is lost, then profiled, which says
what functions take more time of their own. One that waits for a GPU is among them.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine import TINY, Setting, ask, start, write_bundle

KINDS = ("idle", "rows")
MOST = 25
"""Functions that are printed."""


def own_seconds(
    llm: Any, kind: str, setting: Setting, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return each function's own seconds while all prompts are answered."""
    profile = cProfile.Profile()
    profile.runcall(ask, llm, kind, setting, arguments)
    stats: Any = pstats.Stats(profile)
    found: dict[str, float] = {}
    for (file, line, name), (_, _, own, _, _) in stats.stats.items():
        place = f"{'/'.join(Path(file).parts[-3:])}:{line} {name}"
        found[place] = found.get(place, 0.0) + own
    return found


def main() -> None:
    """Print rates, and what takes most time more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1024)
    arguments = parser.parse_args()
    arguments.batches, arguments.pictures = [arguments.requests], False
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "none"}
    setting = Setting("changing", arguments.requests)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(arguments.model, bundle)
        llm = start(arguments, bundle)
    for turn in range(3):
        rates = {kind: ask(llm, kind, setting, arguments) for kind in KINDS}
        if turn:  # The first one warms up.
            told = (f"{kind} {rate.tokens_per_s:.0f}" for kind, rate in rates.items())
            print("tokens/s:", ", ".join(told), flush=True)
    idle, rows = (own_seconds(llm, kind, setting, arguments) for kind in KINDS)
    more = {name: rows.get(name, 0.0) - idle.get(name, 0.0) for name in {*rows, *idle}}
    print("| function | idle ms | a row each ms |\n|---|---:|---:|")
    for name in sorted(more, key=lambda one: -abs(more[one]))[:MOST]:
        was, now = (1e3 * found.get(name, 0.0) for found in (idle, rows))
        print(f"| `{name}` | {was:.0f} | {now:.0f} |")


if __name__ == "__main__":
    main()
