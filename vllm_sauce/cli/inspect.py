# SPDX-License-Identifier: Apache-2.0
"""``sauce inspect``: a report on a bundle that a person can look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    bundle: Annotated[
        str, typer.Argument(help="The bundle's folder, or its name on the hub.")
    ],
    model: Annotated[Path, typer.Option("--model", help="The model's folder.")],
    concepts: Annotated[
        Path | None, typer.Option("--concepts", help="A concepts.yaml.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="A folder of pictures with labels.jsonl."),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--concept", help="Only this one; repeatable. Default: all."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    latents: Annotated[int, typer.Option(help="Latents shown of each concept.")] = 8,
    top: Annotated[int, typer.Option(help="Pictures shown of each latent.")] = 9,
    probes: Annotated[
        int, typer.Option(help="Pictures of each concept that are asked about.")
    ] = 6,
    split: Annotated[
        str | None, typer.Option(help="Only this split of a concepts.yaml.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help='With --pictures: "Is there {a concept} in the picture?"'),
    ] = None,
    naming: Annotated[
        list[str] | None,
        typer.Option(
            help="With --pictures: a question whose answer is the concept's name; "
            "[DOMAIN=]QUESTION, repeatable."
        ),
    ] = None,
) -> None:
    """Show each concept's latents, where they fire, and what forgetting it does."""
    from vllm_sauce.cli.options import check_place
    from vllm_sauce.inspection import inspect as inspecting

    check_place(out)
    shown = inspecting.read_shown(concepts, pictures, split, question, naming or ())
    size = inspecting.write_report(
        bundle, model, shown, names or (), out, latents, top, probes
    )
    typer.echo(f"{out}: {size / 1e6:.1f} MB")
