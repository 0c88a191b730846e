# SPDX-License-Identifier: Apache-2.0
"""A run's progress in rows: the silent form, and a bar for the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Counts rows; shows nothing."""

    def __init__(self) -> None:
        self.total = self.done = self.failed = 0

    @contextmanager
    def shown(self, total: int, done: int) -> Iterator[None]:
        """Begin at ``done`` of ``total`` rows and show it until the block ends."""
        self.total, self.done = total, done
        yield

    def advance(self, rows: int, failed: int) -> None:
        """Note a finished chunk, with those of its rows that failed."""
        self.done += rows
        self.failed += failed


class Bar(Progress):
    """A bar with the rate and the time that is left."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[rate]}"),
            console=console,
        )
        self._task = self._bar.add_task("starting", rate="")
        self._started_s: float | None = None
        self._first = 0

    @contextmanager
    def shown(self, total: int, done: int) -> Iterator[None]:
        """Show the bar until the block ends."""
        self._bar.update(self._task, total=total, completed=done)
        with super().shown(total, done), self._bar:
            yield

    def advance(self, rows: int, failed: int) -> None:
        """Move the bar."""
        super().advance(rows, failed)
        self._bar.update(
            self._task,
            completed=self.done,
            description="answering" if self.done < self.total else "answered",
            rate=self._rate() + (f"  {self.failed} failed" if self.failed else ""),
        )

    def _rate(self) -> str:
        # From the first part on: an engine's start says nothing of its speed.
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._first = now_s, self.done
            return ""
        rate = (self.done - self._first) / max(now_s - self._started_s, 1e-9)
        left_s = round((self.total - self.done) / rate)
        minutes, seconds = divmod(left_s, 60)
        return f"{rate:.1f} rows/s  {minutes}:{seconds:02d} left"
