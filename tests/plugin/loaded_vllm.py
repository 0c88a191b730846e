# SPDX-License-Identifier: Apache-2.0
"""``vllm`` commands that end by themselves, each in a copy of one process.

Loading vLLM is nearly all they do. A copy of a process that has loaded it runs the
console script's own function, with its own arguments, output and exit status.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PARENT = """
import importlib, json, os, sys

# vLLM 0.28 logs to what else would be the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from vllm.entrypoints.cli.main import main

# What main imports before it looks at its arguments.
for name in ("benchmark.main", "serve"):
    importlib.import_module("vllm.entrypoints.cli." + name)
for line in sys.stdin:
    args, log = json.loads(line)
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["vllm", *args]
        sys.exit(main())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, file=answers, flush=True)
"""


class LoadedVLLM:
    """A process with vLLM in it that has read no arguments."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._runs = 0

    def run(self, *args: str) -> tuple[int, str]:
        """Run a command; returns its exit status and all it said."""
        self._runs += 1
        log = self._folder / f"log-{self._runs}"
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([args, str(log)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), log.read_text()


@contextmanager
def loaded_vllm(folder: Path, environ: dict[str, Any]) -> Iterator[LoadedVLLM]:
    """Load vLLM in a process of its own, and end that afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
    ) as process:
        yield LoadedVLLM(process, folder)
