# SPDX-License-Identifier: Apache-2.0
"""``sauce import``: a public SAE becomes a bundle, if it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_sae(
    source: Annotated[
        str, typer.Argument(help="File, folder, or org/name[@revision].")
    ],
    model: Annotated[
        str, typer.Option(help="Folder of the model, or org/name[@revision].")
    ],
    site: Annotated[str, typer.Option(help="decoder.<i> or vision.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="Do not look, it is this format.")
    ] = None,
    subfolder: Annotated[
        str | None, typer.Option(help="Folder or file inside the source.")
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option(help="JSON file with the catalogue.")
    ] = None,
    activations: Annotated[
        Path | None,
        typer.Option(help="Safetensors file to check on; the model is not run."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to check on.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="File of texts to check on, one a line.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(help="Latents a token keeps, where no file says it.")
    ] = None,
    dict_class: Annotated[
        str | None,
        typer.Option(help="dictionary_learning's class, where no file says it."),
    ] = None,
    min_explained_variance: Annotated[
        float, typer.Option(help="Share of the variance it must explain.")
    ] = 0.3,
    compare: Annotated[
        bool, typer.Option(help="Refuse it if another reading explains clearly more.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the bundle that is there.")
    ] = False,
) -> None:
    """Turn a public SAE into a bundle, checked on activations of the actual model."""
    options = dict(locals())
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from vllm_sauce.learning.importing import import_sae as importing

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    request = importing.ImportRequest(format=options.pop("format_name"), **options)
    # Where nobody watches, rich shows no bar, but an empty line after it.
    quiet = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("starting", total=None)
        imported = importing.import_sae(
            request, lambda step: progress.update(task, description=step)
        )
    Console().print(imported.as_table())
    typer.echo(f"bundle: {out}")
