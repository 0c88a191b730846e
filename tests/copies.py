# SPDX-License-Identifier: Apache-2.0
"""Processes that are copies of one which has loaded what most of them load.

Torch and the command line take four seconds of a core to import; a copy takes none. A
test whose point is a fresh process starts one.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.cli.sauce import Done

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("torch._dynamo", "vllm_sauce.cli.app", "vllm_sauce.cli.stages"),
        *("vllm_sauce.bundle.bundle", "vllm_sauce_kernels.masked_edit"),
    ]
)


class Copy:
    """A process that calls a function, in an environment of its own."""

    def __init__(
        self, call: Callable[..., object], *args: Any, env: Mapping[str, object]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sauce-copy-")
        self._said = [Path(self._folder.name) / name for name in ("out", "err")]
        strings = {**os.environ, **{name: str(value) for name, value in env.items()}}
        self.process = _CONTEXT.Process(
            target=_run,
            args=(call, args, strings, self._said),
            # Ended with whoever did not wait for it.
            daemon=True,
        )
        self.process.start()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout_s: float = 120) -> Done:
        """Return how it ended, and what it said."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "it did not end"
        out, err = (file.read_text() for file in self._said)
        return Done(self.process.exitcode, out, err)


def sauce_in_a_copy(*words: object, env: Mapping[str, object]) -> Done:
    """Run ``sauce`` in a process that may read another environment as it loads."""
    return Copy(_sauce, *map(str, words), env=env).wait()


def _sauce(*words: str) -> None:
    from vllm_sauce.cli import app

    app([*words])


def _run(
    call: Callable[..., object],
    args: tuple[Any, ...],
    env: Mapping[str, str],
    said: list[Path],
) -> None:
    os.setsid()
    # What it was copied from may have had another.
    os.environ.clear()
    os.environ.update(env)
    for number, file in zip((1, 2), said, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    try:
        call(*args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
