# SPDX-License-Identifier: Apache-2.0
"""``sauce learn``: pictures with a thing and without it become a bundle."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.scale import orphans
from vllm_sauce.scale.cluster import actors_wanted


def learn(
    request: LearnRequest,
    *,
    config: Path | None = None,
    plan: Annotated[bool, Parameter(negative="")] = False,
    plan_pictures: int | None = None,
) -> int:
    """Harvest, train or import, select, calibrate; run it again to go on.

    Parameters
    ----------
    config
        A YAML file of these options; flags override what it says.
    plan
        Say what it will take, and stop.
    plan_pictures
        With --plan: so many pictures to train on, none needed here.
    """
    from rich.console import Console

    from vllm_sauce.bundle import Bundle
    from vllm_sauce.cli.stages import told_weak
    from vllm_sauce.errors import ConfigError
    from vllm_sauce.learning import learn as logic
    from vllm_sauce.learning.calibration.report import table
    from vllm_sauce.learning.plan import planned

    console = Console(stderr=True)

    def announce(number: int, total: int, name: str, what: str) -> None:
        console.print(f"[bold]\\[{number}/{total}][/bold] {name}: {what}")

    actors_wanted(request.resources)  # refused before anything runs
    if plan_pictures is not None and not plan:
        raise ConfigError("--plan-pictures is a number to plan with; add --plan")
    if plan_pictures is not None and request.train_texts is not None:
        raise ConfigError("--plan-pictures stands for pictures, not for --train-texts")
    if plan_pictures is not None and plan_pictures < 1:
        raise ConfigError(f"--plan-pictures must be at least 1, got {plan_pictures}")
    Console().print(planned(request, plan_pictures))
    if plan:
        return 0
    seconds = logic.learn(request, run_apart, announce)
    lines = [f"{name}: {spent:.0f} s" for name, spent in seconds.items()]
    lines += [f"bundle: {request.out}; what was measured on the way: {request.folder}"]
    sys.stdout.write("\n".join(lines) + "\n")
    catalogue = Bundle.load(request.out, weights=False).catalogue
    Console().print(table(catalogue))
    return told_weak(catalogue)


def run_apart(name: str, request: Any) -> int:
    """Run a subcommand in a process of its own; return its exit status.

    It ends with this process: what went on by itself would meet the next run's.
    """
    command = [sys.executable, "-m", "vllm_sauce.cli.stage"]
    given = pickle.dumps((name, request))
    env = {**os.environ, orphans.VARIABLE: str(os.getpid())}
    return subprocess.run(command, input=given, env=env, check=False).returncode
