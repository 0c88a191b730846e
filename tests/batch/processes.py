# SPDX-License-Identifier: Apache-2.0
"""Find and end the processes of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Return all processes that a process has started, theirs too."""
    return psutil.Process(pid).children(recursive=True)


def actors(pid: int | None = None) -> list[psutil.Process]:
    """Return the processes that hold an engine, or its stand-in."""
    found = []
    for process in descendants(pid):
        try:
            if process.cmdline()[:1] and "MapWorker" in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(true: Callable[[], object], timeout_s: float = 400) -> None:
    """Return once something is true; fail when it never is."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    """Tell whether none of them runs."""
    return not [
        p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    ]


class KillsOneActor(threading.Thread):
    """Kills an actor, and nothing else, once something is true."""

    def __init__(self, when: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.when = when
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        """Wait, then kill."""
        wait_until(self.when)
        victim = actors()[0]
        victim.kill()
        self.killed = victim.pid
