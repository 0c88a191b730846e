# SPDX-License-Identifier: Apache-2.0
"""What a command shows while it works, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich
from rich.console import Console


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; the block is given what it calls with (done, total)."""
    with _bars() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def several_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for each (what, done, total) that the block tells of."""
    with _bars() as bar:
        tasks: dict[str, rich.TaskID] = {}

        def note(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield note


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """Show on stderr which step is done; the block is given what it calls with it."""
    text = rich.TextColumn("{task.description}")
    with _shown(rich.SpinnerColumn(), text, rich.TimeElapsedColumn()) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=step)


def _bars() -> rich.Progress:
    text, count = rich.TextColumn("{task.description}"), rich.MofNCompleteColumn()
    times = rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    return _shown(text, rich.BarColumn(), count, *times)


def _shown(*columns: rich.ProgressColumn) -> rich.Progress:
    console = Console(stderr=True)
    # Where nobody watches, rich shows no bar, but an empty line after it.
    quiet = not console.is_interactive
    return rich.Progress(*columns, console=console, transient=True, disable=quiet)
