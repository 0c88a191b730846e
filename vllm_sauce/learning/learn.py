# SPDX-License-Identifier: Apache-2.0
"""``sauce learn``: from pictures to a bundle, each stage a subcommand of its own.

A stage runs in a process of its own, so that what it held on a GPU is free for the
next. What each leaves is in ``<out>.learn``. A result is written whole and last, so a
stage whose result is there is not run again, unless what it is made from was not there
yet: then it is another's. Each stage can itself be gone on with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.files import differences, file_sha256, write_whole
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.stages import stages
from vllm_sauce.models.model_size import check_sites

RUN_FILE = "learn.json"
STAGES_FILE = "stages.json"

Announce = Callable[[int, int, str, str], None]
"""Told the number of a stage, of how many, its name, and what becomes of it."""
Run = Callable[[str, Any], int]
"""Runs a subcommand with its dataclass, in a process of its own; gives its status."""


def learn(
    request: LearnRequest,
    run: Run,
    announce: Announce = lambda number, total, name, what: None,
) -> dict[str, float]:
    """Run the stages that are not done; return the seconds of each that is.

    Raises: LearnError naming the stage that failed; ConfigError if the folder is
    another run's
    """
    todo = stages(request)
    _begin(request)
    file = request.folder / STAGES_FILE
    seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    ran = False
    for number, stage in enumerate(todo, 1):
        tell = partial(announce, number, len(todo), stage.name)
        if stage.result.exists() and (stage.name in seconds or not ran):
            tell("done before")
            continue
        tell("running")
        ran = True
        before = time.monotonic()
        status = run(stage.name.split()[0], stage.request)
        some_failed = status == 1 and stage.failures and stage.failures.exists()
        if some_failed:
            tell(f"see {stage.failures}")
        elif status != 0 and stage.only_shows:
            tell("failed; the rest is whole")
            continue
        elif status not in (0, stage.weak):
            ended = "ended with status" if status > 0 else "was killed by signal"
            raise LearnError(
                f"{stage.name} {ended} {abs(status)}; mend what it says above and "
                "run the same command to go on from there"
            )
        if stage.result.name == "harvest.done" and stage.result.parent.is_dir():
            write_whole(stage.result, b"", LearnError)
        if not stage.result.exists():
            raise LearnError(f"{stage.name} left no {stage.result}")
        spent = seconds.get(stage.name, 0.0) + time.monotonic() - before
        seconds[stage.name] = round(spent, 1)
        _write(file, seconds)
    return seconds


def _begin(request: LearnRequest) -> None:
    if not request.concepts.is_file():
        raise ConfigError(f"no concepts.yaml at {request.concepts}")
    check_sites(request.model, request.sites)
    folder = request.folder
    told = {
        **request.to_json(),
        "model": fingerprint_model(request.model).model_dump(mode="json"),
        "concepts_sha256": file_sha256(request.concepts),
    }
    path = folder / RUN_FILE
    if names := differences(path, told):
        raise ConfigError(
            f"{folder} is of a run that differs in {', '.join(names)}; run as "
            "before to go on with it, or give another --out"
        )
    if names is not None:
        return
    if request.out.exists():
        raise ConfigError(f"{request.out} is there already; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, told)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, (json.dumps(content, indent=1) + "\n").encode(), LearnError)
