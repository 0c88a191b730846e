# SPDX-License-Identifier: Apache-2.0
"""What several subcommands share: vLLM's arguments, a progress bar."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_sauce.errors import ConfigError

if TYPE_CHECKING:
    from vllm_sauce.scale.cluster import Resources


def engine_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE pairs; a value that is no JSON is text.

    Raises: ConfigError
    """
    arguments: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"wanted KEY=VALUE for the engine, got {pair!r}")
        if name in arguments:
            raise ConfigError(f"{name} is given twice")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def check_place(out: Path) -> None:
    """Refuse a file that cannot be written, before the work and not after it.

    Raises: ConfigError
    """
    folder = out.resolve().parent
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; make it first")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise ConfigError(f"{out} cannot be written to; name another file")


def resources(
    address: str | None,
    actors: int,
    gpus_per_actor: float | None,
    cpus_per_actor: float | None,
) -> Resources | None:
    """Return where actors run; None means this process, without Ray.

    Raises: ConfigError
    """
    from vllm_sauce.scale.cluster import Resources

    found = Resources(
        address=address,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor,
    )
    if address is not None or actors > 1:
        return found
    if gpus_per_actor is not None or cpus_per_actor is not None:
        raise ConfigError(
            "an actor's share of the machine was given, but no actors: give --actors "
            "or --ray, or leave the share out"
        )
    return None


def site_saes(given: Sequence[str]) -> dict[str, str]:
    """Parse SITE=SAE pairs; an SAE may be a name on a hub.

    Raises: ConfigError
    """
    found: dict[str, str] = {}
    for pair in given:
        site, equals, source = pair.partition("=")
        if not equals or not source:
            raise ConfigError(f"wanted SITE=SAE, got {pair!r}")
        if site in found:
            raise ConfigError(f"{site} is given twice")
        found[site] = source
    return found


def site_paths(given: Sequence[str]) -> dict[str, Path]:
    """Parse SITE=PATH pairs.

    Raises: ConfigError
    """
    paths: dict[str, Path] = {}
    for pair in given:
        site, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"wanted SITE=FOLDER, got {pair!r}")
        if site in paths:
            raise ConfigError(f"{site} is given twice")
        paths[site] = Path(path)
    return paths


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; the block is given what it calls with (done, total)."""
    with _bars() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for each (what, done, total) that the block tells of."""
    with _bars() as bar:
        tasks: dict[str, Any] = {}

        def note(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield note


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
