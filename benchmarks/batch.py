# SPDX-License-Identifier: Apache-2.0
"""Is `sauce batch` as fast as a loop of `LLM.generate` over the same rows?

``python benchmarks/batch.py [--rows 2000] [--rounds 3] [--max-tokens 12]``

sauce-tiny, each row a picture and a question, every third row with one of ten masks.
Rounds alternate between

- loop: read 256 rows and their pictures, ``LLM.generate``, the next 256;
- whole: the same with all rows in one call, which no loop over a large file can do;
- batch: ``sauce batch`` in this process, from its engine's readiness to the last part
  on the disk;
- ray: the same with a local Ray and one actor.

The plain engine and the others have the same arguments and the same bundle. Each
round of batch starts an engine of its own, which answers the rows' start once before
the time is taken, as the plain engine did before the first round. Beside the time stand
the CPU seconds of all processes, Ray's own included: where the machine is shared, they
say more than the time.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
Spent = tuple[float, float]
"""Seconds, and CPU seconds."""
BLOCK = 256
WARM_UP = 128
QUESTIONS = (
    "What object is in the picture?",
    "What color is the background?",
    "Is there a dog in the picture?",
    "Describe the picture.",
)
CONCEPTS = [
    "dog",
    "cat",
    "car",
    "red",
    "blue",
    "wood",
    "marble",
    "tree",
    "fire",
    "star",
]
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 64,
    "seed": 0,
}


def write_rows(path: Path, count: int) -> None:
    """Write the input: pictures in turn, so that few come twice close together."""
    known = known_concepts()
    with path.open("w", encoding="utf-8") as file:
        pictures = sorted((TINY / "pictures").glob("*.png"))
        for i in range(count):
            question = QUESTIONS[i % len(QUESTIONS)]
            row: dict[str, Any] = {
                "prompt": f"USER: <image>\n{question} ASSISTANT:",
                "image": str(pictures[i % len(pictures)]),
            }
            if i % 3 == 0:
                row["forget"] = known[i // 3 % len(known)]
            file.write(json.dumps(row) + "\n")


def known_concepts() -> list[str]:
    """Return ten concepts of the bundle."""
    from vllm_sauce.bundle import Bundle

    names = Bundle.load(TINY / "latents", weights=False).catalogue.names()
    return [name for name in CONCEPTS if name in names] or list(names[:10])


def cpu_seconds() -> float:
    """Return the CPU seconds so far of this process and all it has started."""
    import psutil

    mine = psutil.Process()
    total = 0.0
    for process in (mine, *mine.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def plain_round(llm: Any, path: Path, block: int, max_tokens: int) -> Spent:
    """Return what a loop of ``LLM.generate`` takes, from file to answers."""
    from vllm import SamplingParams

    import vllm_sauce
    from vllm_sauce.data.pictures import decode_picture

    cpu_s, start_s = cpu_seconds(), time.perf_counter()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for at in range(0, len(rows), block):
        prompts, params = [], []
        for row in rows[at : at + block]:
            image = decode_picture(Path(row["image"]).read_bytes())
            prompts.append(
                {"prompt": row["prompt"], "multi_modal_data": {"image": image}}
            )
            extra = dict(vllm_sauce.forget(row["forget"])) if "forget" in row else None
            params.append(
                SamplingParams(temperature=0, max_tokens=max_tokens, extra_args=extra)
            )
        llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start_s, cpu_seconds() - cpu_s


def start_warm(job: Any, path: str, ready: str) -> Any:
    """Start an actor's engine, warm it up, and note the time when it is ready."""
    from vllm_sauce.batch.chunks import split_lines
    from vllm_sauce.batch.engine import answer_chunk, start_engine

    engine = start_engine(job)
    answer_chunk(job, engine, split_lines(Path(path), WARM_UP)[0])
    Path(ready).write_text(str(time.time()))
    return engine


def note_cpu(ready: Path, noted: list[float]) -> None:
    """Note the CPU seconds at the moment when an actor's engine is ready."""
    while not ready.exists() or not ready.read_text():
        time.sleep(0.02)
    noted.append(cpu_seconds())


def batch_round(
    path: Path, folder: Path, max_tokens: int, on_ray: bool = False
) -> Spent:
    """Return what `sauce batch` takes from its engine's readiness on."""
    from vllm_sauce.batch import job, run
    from vllm_sauce.batch.settings import BatchRequest, Defaults
    from vllm_sauce.scale.cluster import Resources

    ends: list[tuple[float, float]] = []

    def clock(rows: int, total: int, failed: int) -> None:
        if rows == total:
            ends.append((time.time(), cpu_seconds()))

    ready, noted = folder / "ready", list[float]()
    ready.unlink(missing_ok=True)
    threading.Thread(target=note_cpu, args=(ready, noted), daemon=True).start()
    request = BatchRequest(
        path,
        folder / "out.parquet",
        model=str(TINY / "model"),
        bundle=str(TINY / "latents"),
        defaults=Defaults(max_tokens=max_tokens),
        engine_args=ENGINE,
        resources=Resources() if on_ray else None,
        overwrite=True,
    )
    done = run.run(
        job.make_job(request),
        request,
        progress=clock,
        start=functools.partial(start_warm, path=str(path), ready=str(ready)),
    )
    if done.failed:
        raise SystemExit(f"{done.failed} rows failed: {done.failures}")
    ((end_s, end_cpu_s),) = ends
    return end_s - float(ready.read_text()), end_cpu_s - noted[0]


def measure(count: int, rounds: int, max_tokens: int) -> dict[str, Any]:
    """Run the rounds; returns seconds by kind."""
    import vllm
    from vllm import LLM

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "in.jsonl"
        write_rows(path, count)
        llm = LLM(
            model=str(TINY / "model"),
            disable_log_stats=True,
            additional_config={"sauce": {"bundle": str(TINY / "latents")}},
            **ENGINE,
        )
        kinds: dict[str, Callable[[], Spent]] = {
            "loop": lambda: plain_round(llm, path, BLOCK, max_tokens),
            "batch": lambda: batch_round(path, Path(temporary), max_tokens),
            "ray": lambda: batch_round(path, Path(temporary), max_tokens, on_ray=True),
            "whole": lambda: plain_round(llm, path, count, max_tokens),
        }
        plain_round(llm, path, BLOCK, max_tokens)  # warm-up
        spent: dict[str, list[Spent]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, once in kinds.items():
                spent[kind].append(once())
        # An engine that is alive at the end can keep Python from ending.
        llm.llm_engine.engine_core.shutdown()
    return {
        "rows": count,
        "rounds": rounds,
        "max_tokens": max_tokens,
        "engine": ENGINE,
        "vllm": vllm.__version__,
        "cpus": os.cpu_count(),
        "seconds": {k: [s for s, _ in v] for k, v in spent.items()},
        "cpu_s": {k: [c for _, c in v] for k, v in spent.items()},
    }


def main() -> None:
    """Print the table; the last line is the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    ENGINE["enforce_eager"] = arguments.eager
    result = measure(arguments.rows, arguments.rounds, arguments.max_tokens)
    median_s = {k: statistics.median(v) for k, v in result["seconds"].items()}
    cpu_s = {k: statistics.median(v) for k, v in result["cpu_s"].items()}
    result["ratio"] = {k: s / median_s["batch"] for k, s in median_s.items()}
    print(
        f"sauce-tiny, {result['rows']} rows, {result['cpus']} CPUs, float32, "
        f"vLLM {result['vllm']}; medians of {result['rounds']} rounds"
    )
    print(f"{'':<6} {'rows/s':>7} {'batch/this':>11} {'CPU s':>6}  seconds of a round")
    for kind, seconds in result["seconds"].items():
        each = " ".join(f"{s:.2f}" for s in seconds)
        print(
            f"{kind:<6} {result['rows'] / median_s[kind]:>7.1f} "
            f"{result['ratio'][kind]:>11.3f} {cpu_s[kind]:>6.1f}  {each}"
        )
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
