# SPDX-License-Identifier: Apache-2.0
"""``sauce demo``: see a small model forget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the answers as JSON.")
    ] = None,
    html_path: Annotated[
        Path, typer.Option("--html", help="Where the page with the pictures goes.")
    ] = Path("demo.html"),
) -> None:
    """Ask sauce-tiny about pictures with nothing, one and three concepts forgotten."""
    from rich.console import Console

    from vllm_sauce.cli.failures import only_shown
    from vllm_sauce.cli.options import check_place
    from vllm_sauce.playground import demo as logic

    for path in (json_path, html_path):
        if path is not None:
            check_place(path)
    folder = logic.find_tiny()
    typer.echo("Starting vLLM on sauce-tiny; this takes about half a minute ...")
    answers = logic.ask(folder, logic.read_cases(folder))
    Console().print(logic.as_table(answers))
    if json_path is not None:
        json_path.write_text(logic.as_json(answers), encoding="utf-8")
    wrong = [answer for answer in answers if not answer.right]
    typer.echo(f"{len(answers) - len(wrong)} of {len(answers)} answers as they must be")
    with only_shown(f"the page {html_path}"):
        html_path.write_text(logic.as_html(folder, answers), encoding="utf-8")
        typer.echo(f"pictures and answers side by side: {html_path}")
    if wrong:
        raise typer.Exit(1)
