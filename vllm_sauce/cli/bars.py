# SPDX-License-Identifier: Apache-2.0
"""What a command shows while it works, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich import progress as rich
from rich.console import Console

if TYPE_CHECKING:
    from vllm_sauce.learning.training.sae_lens_training import StepFigures
    from vllm_sauce.learning.training.train import Report


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; the block is given what it calls with (done, total)."""
    with several_bars() as note:
        note(what, 0, None)
        yield partial(note, what)


@contextmanager
def several_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar on stderr for each (what, done, total) that the block tells of."""
    times = rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    with _shown(*_columns(), *times) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def note(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield note


@contextmanager
def row_bar() -> Iterator[Callable[[int, int, int], None]]:
    """Show rows, their rate and the time left; given (done, total, failed so far)."""
    rates = rich.TextColumn("rows  {task.fields[rate]}")
    bar = rich.Progress(*_columns(), rates, console=Console(stderr=True))
    task = bar.add_task("starting", rate="")
    marks: list[tuple[float, int]] = []

    def note(done: int, total: int, failed: int) -> None:
        marks.append((time.monotonic(), done))
        rate = ""
        if len(marks) > 2:
            # From the first part on: an engine's start says nothing of its speed.
            (began_s, before), (now_s, _) = marks[1], marks[-1]
            speed = (done - before) / max(now_s - began_s, 1e-9)
            minutes, seconds = divmod(round((total - done) / speed), 60)
            rate = f"{speed:.1f} rows/s  {minutes}:{seconds:02d} left"
        if failed:
            rate += f"  {failed} failed"
        bar.update(task, completed=done, total=total, rate=rate)
        if len(marks) == 1:
            shown.enter_context(bar)
        else:
            told = "answering" if done < total else "answered"
            bar.update(task, description=told)

    with ExitStack() as shown:
        yield note


@contextmanager
def training_bar(what: str, total_steps: int) -> Iterator[Report]:
    """Show an SAE's training with the last batch's figures."""
    figures = rich.TextColumn("{task.fields[figures]}")
    with _shown(*_columns(), rich.TimeRemainingColumn(), figures) as bar:
        task = bar.add_task(what, total=total_steps, figures="")

        def report(steps_done: int, figures: StepFigures) -> None:
            text = (
                f"loss {figures.loss:.3g}, EV {figures.explained_variance:.3f}, "
                f"L0 {figures.l0:.1f}, dead {figures.dead_latents}"
            )
            bar.update(task, completed=steps_done, figures=text)

        yield report


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """Show on stderr which step is done; the block is given what it calls with it."""
    text = rich.TextColumn("{task.description}")
    with _shown(rich.SpinnerColumn(), text, rich.TimeElapsedColumn()) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=step)


def _columns() -> tuple[rich.ProgressColumn, ...]:
    text = rich.TextColumn("{task.description}")
    return text, rich.BarColumn(), rich.MofNCompleteColumn()


def _shown(*columns: rich.ProgressColumn) -> rich.Progress:
    console = Console(stderr=True)
    # Where nobody watches, rich shows no bar, but an empty line after it.
    quiet = not console.is_interactive
    return rich.Progress(*columns, console=console, transient=True, disable=quiet)
