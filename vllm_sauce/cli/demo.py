# SPDX-License-Identifier: Apache-2.0
"""``sauce demo``: see a small model forget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    json_path: Annotated[Path | None, Parameter(name="--json")] = None,
    html_path: Annotated[Path, Parameter(name="--html")] = Path("demo.html"),
) -> int:
    """Ask sauce-tiny about pictures with nothing, one and eight concepts forgotten.

    Parameters
    ----------
    json_path
        Also write the answers as JSON.
    html_path
        Where the page with the pictures goes.
    """
    from rich.console import Console

    from vllm_sauce.cli.failures import check_place, only_shown
    from vllm_sauce.playground import demo as logic

    for path in (json_path, html_path):
        if path is not None:
            check_place(path)
    folder = logic.find_tiny()
    console = Console()
    console.print("Starting vLLM on sauce-tiny; this takes about half a minute ...")
    answers = logic.ask(folder, logic.read_cases(folder))
    console.print(logic.as_table(answers))
    if json_path is not None:
        json_path.write_text(logic.as_json(answers), encoding="utf-8")
    right = sum(answer.right for answer in answers)
    sys.stdout.write(f"{right} of {len(answers)} answers as they must be\n")
    with only_shown(f"the page {html_path}"):
        html_path.write_text(logic.as_html(folder, answers), encoding="utf-8")
        sys.stdout.write(f"pictures and answers side by side: {html_path}\n")
    return int(right < len(answers))
