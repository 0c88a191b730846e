# SPDX-License-Identifier: Apache-2.0
"""Where a step's time goes when its requests are masked: beside idle ones, in turns.

``python -m benchmarks.where [--model DIR] [--dummy] [--requests 256] [--rounds 20]``

One engine answers the batches of ``benchmarks/engine.py``, idle and with a row each,
in short rounds that take turns: a host's speed changes by half within a minute. Steps
in which requests begin are told apart, for a GPU has no graph of them. Last it is
profiled: which functions of the engine's process take more time of their own. One that
waits for a GPU is among them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine import (
    BATCHES,
    TINY,
    Setting,
    Step,
    start,
    steps_of,
    write_bundle,
)

KINDS = ("idle", "rows")
MOST = 25
"""Functions that are printed."""


def begin_profile(worker: Any) -> None:
    """Profile the engine's process from now on."""
    import builtins
    import cProfile

    builtins.sauce_profile = cProfile.Profile()  # type: ignore[attr-defined]
    builtins.sauce_profile.enable()  # type: ignore[attr-defined]


def end_profile(worker: Any) -> dict[str, float]:
    """Return each function's own seconds since."""
    import builtins
    import pstats
    from pathlib import Path

    profile = builtins.sauce_profile  # type: ignore[attr-defined]
    profile.disable()
    stats: Any = pstats.Stats(profile)
    found: dict[str, float] = {}
    for (file, line, name), (_, _, own, _, _) in stats.stats.items():
        place = f"{'/'.join(Path(file).parts[-3:])}:{line} {name}"
        found[place] = found.get(place, 0.0) + own
    return found


def tell(setting: Setting, rounds: list[dict[str, list[Step]]]) -> None:
    """Print the ratio of rates, and a step's time."""
    ratios = sorted(
        sum(s.seconds for s in one["idle"]) / sum(s.seconds for s in one["rows"])
        for one in rounds
    )
    print(
        f"{setting.batch}, {setting.requests}: a row each has {ratios[0]:.3f} to "
        f"{ratios[-1]:.3f} of idle's tokens/s, median {statistics.median(ratios):.3f}, "
        f"{len(ratios)} rounds"
    )
    for began in (True, False):
        cells = []
        for kind in KINDS:
            found = [
                1e3 * step.seconds
                # Neither the first steps, which take everybody in, nor the last ones.
                for one in rounds
                for step in one[kind][3 : len(one[kind]) * 2 // 3]
                if step.begins == began
            ]
            if len(found) > 1:
                parts = statistics.quantiles(found, n=4)
                told = "/".join(f"{part:.2f}" for part in parts)
                cells.append(f"{kind} {told} ms of {len(found)}")
        if cells:
            what = "where requests begin" if began else "others"
            print(f"  steps, {what}: quartiles {', '.join(cells)}", flush=True)


def profiled(
    llm: Any, kind: str, setting: Setting, arguments: argparse.Namespace
) -> Any:
    """Return own seconds of the functions of the engine's process."""
    llm.collective_rpc(begin_profile)
    steps_of(llm, kind, setting, arguments)
    return llm.collective_rpc(end_profile)[0]


def main() -> None:
    """Print rates, and what takes most time more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output-len", type=int, default=24)
    parser.add_argument("--max-model-len", type=int, default=1024)
    arguments = parser.parse_args()
    arguments.batches, arguments.pictures = [arguments.requests], False
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # For functions of this file, which are sent to the engine's process.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(arguments.model, Path(folder) / "bundle")
        llm = start(arguments, Path(folder) / "bundle")
    for setting in (Setting(batch, arguments.requests) for batch in BATCHES):
        rounds = []
        for number in range(arguments.rounds + 1):
            turn = KINDS if number % 2 else KINDS[::-1]
            rounds.append(
                {kind: steps_of(llm, kind, setting, arguments) for kind in turn}
            )
        tell(setting, rounds[1:])  # The first one warms up.
    changing = Setting("changing", arguments.requests)
    idle, rows = (profiled(llm, kind, changing, arguments) for kind in KINDS)
    more = {name: rows.get(name, 0.0) - idle.get(name, 0.0) for name in {*rows, *idle}}
    print("| function | idle ms | a row each ms |\n|---|---:|---:|")
    for name in sorted(more, key=lambda one: -abs(more[one]))[:MOST]:
        was, now = (1e3 * found.get(name, 0.0) for found in (idle, rows))
        print(f"| `{name}` | {was:.1f} | {now:.1f} |")
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
