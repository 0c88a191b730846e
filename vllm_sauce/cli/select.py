# SPDX-License-Identifier: Apache-2.0
"""``sauce select``: which latents carry a concept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def select(
    sae: Annotated[
        Path,
        typer.Option("--sae", help="A bundle's folder, or one that SAELens saved."),
    ],
    site: Annotated[str, typer.Option("--site", help="vision or decoder.<i>.")],
    harvest: Annotated[
        Path, typer.Option("--harvest", help="Folder that sauce harvest wrote.")
    ],
    concepts: Annotated[
        Path, typer.Option("--concepts", help="concepts.yaml, as it was harvested.")
    ],
    score: Annotated[
        str,
        typer.Option(
            "--score", help="share, saeuron, crisp, dsg, rate, causal or attribution."
        ),
    ] = "share",
    k: Annotated[int, typer.Option("--k", help="Latents kept for each concept.")] = 16,
    out: Annotated[Path, typer.Option("--out", help="Where the latents go.")] = Path(
        "selection.json"
    ),
    split: Annotated[
        str, typer.Option("--split", help="Examples that are used.")
    ] = "selection",
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="Tokens that count: image, text or generated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="For causal, attribution; default: the harvested one."
        ),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="For causal: KEY=VALUE for vllm.LLM; may be given again."),
    ] = None,
) -> None:
    """Rank every concept's latents by one score and keep the best with all scores."""
    from vllm_sauce.cli.options import check_place, engine_arguments, progress_bar
    from vllm_sauce.learning.selection import select as logic

    check_place(out)
    request = logic.SelectRequest(
        sae=sae,
        site=site,
        harvest=harvest,
        concepts=concepts,
        score=score,
        k=k,
        split=split,
        roles=tuple(role or logic.ROLE_NAMES),
        model=model,
        engine_args=engine_arguments(engine_arg or ()),
    )
    with progress_bar("latents") as progress:
        selection = logic.select(request, progress)
    selection.write(out)
    typer.echo(f"{len(selection.concepts)} concepts, up to {k} latents each: {out}")
