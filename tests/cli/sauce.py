# SPDX-License-Identifier: Apache-2.0
"""The ``sauce`` command in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from vllm_sauce.cli import app


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def sauce(*words: object) -> Done:
    """Run a command; an error that it lets through is raised here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([*map(str, words)])
        except SystemExit as ended:
            return Done(int(ended.code or 0), out.getvalue(), err.getvalue())
