# SPDX-License-Identifier: Apache-2.0
"""Reads the command line, asks the questions, prints the tables."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_suite import (
    edit_speed,
    paper,
    per_token_speed,
    prefill,
    targets,
    topk,
)
from benchmarks.kernel_suite.machine import Machine, device_name
from benchmarks.kernel_suite.report import Table
from vllm_sauce_kernels.masked_edit import native

SECONDS = {"cpu": 0.3, "cuda": 0.015}
CPU = torch.device("cpu")
QUESTIONS: dict[str, Callable[[Machine], list[Table]]] = {
    "a": edit_speed.run,
    "b": paper.run,
    "c": topk.run,
    "d": per_token_speed.run,
    "e": edit_speed.run_rows,
    "f": prefill.run,
}


def main(argv: Sequence[str], description: str | None) -> None:
    """Print the tables; the last line is the same as JSON."""
    arguments = parse(argv, description)
    machine = machine_of(arguments)
    title = title_of(machine, arguments)
    print(f"# Kernels\n\n{title}")
    machine.progress("rates")
    machine.measure_rates()
    tables: dict[str, list[Table]] = {}
    for question in arguments.questions:
        tables[question] = QUESTIONS[question](machine)
        if question == "a" and machine.on_gpu:
            tables["targets"] = targets.run(machine)
        for name in (question, "targets")[: 1 + (question == "a" and machine.on_gpu)]:
            for table in tables[name]:
                print(f"\n{table.markdown()}", flush=True)
    result = result_of(machine, title, tables)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{json.dumps(result)}")


def parse(argv: Sequence[str], description: str | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog="kernels.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=SECONDS, default=None)
    parser.add_argument(
        "--questions", nargs="+", choices=QUESTIONS, default=[*QUESTIONS]
    )
    parser.add_argument("--quick", action="store_true", help="a few cells")
    parser.add_argument("--seconds", type=float, help="to measure a variant for")
    parser.add_argument("--minutes", type=float, help="after which (a) stops")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args(argv)
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    return arguments


def machine_of(arguments: argparse.Namespace) -> Machine:
    """Return the device to measure, before its rates are known."""
    on_gpu = arguments.device == "cuda"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not on_gpu:
        native.prepare()

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else CPU
    return Machine(
        device,
        torch.bfloat16 if on_gpu else torch.float32,
        arguments.seconds or SECONDS[arguments.device],
        arguments.quick,
        progress,
        triton=on_gpu,
        deadline=time.monotonic() + 60 * (arguments.minutes or math.inf),
    )


def title_of(machine: Machine, arguments: argparse.Namespace) -> str:
    """Return hardware, versions, date and command in one line."""
    command = f"python benchmarks/kernels.py --device {arguments.device}"
    if arguments.questions != [*QUESTIONS]:
        command += f" --questions {' '.join(arguments.questions)}"
    command += " --quick" if arguments.quick else ""
    command += f" --seconds {arguments.seconds:g}" if arguments.seconds else ""
    command += f" --threads {arguments.threads}" if arguments.threads else ""
    dtype = str(machine.dtype).removeprefix("torch.")
    today = datetime.date.today().isoformat()
    return (
        f"{device_name(machine.device)}; {dtype}; torch {torch.__version__}, Triton "
        f"{triton_version()}; threads {torch.get_num_threads()}; {today}; "
        f"`{command}`"
    )


def triton_version() -> str:
    """Return Triton's version, or that there is none."""
    try:
        import triton  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return "missing"
    return str(triton.__version__)


def result_of(
    machine: Machine, title: str, tables: dict[str, list[Table]]
) -> dict[str, Any]:
    """Return everything as what JSON takes."""
    return {
        "title": title,
        "device": device_name(machine.device),
        "dtype": str(machine.dtype),
        "torch": torch.__version__,
        "triton": triton_version(),
        "threads": torch.get_num_threads(),
        "copy_GB_per_s": machine.copy_bytes_per_s / 1e9,
        "matrix_TFLOP_per_s": machine.flops_per_s / 1e12,
        "questions": {
            name: [table.as_json() for table in found] for name, found in tables.items()
        },
    }
