# SPDX-License-Identifier: Apache-2.0
"""``sauce push``, ``sauce pull`` and ``sauce diff``: bundles travel and change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = typer.Argument(help="org/name or org/name@revision on the Hugging Face hub.")


def push(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    name: Annotated[str, NAME],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
) -> None:
    """Check a bundle and upload it."""
    from vllm_sauce.bundle import hub

    typer.echo(hub.push(folder, hub.HubName.parse(name), private=private))


def pull(
    name: Annotated[str, NAME],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder. Default: the cache.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Check that the bundle belongs to this model."),
    ] = None,
) -> None:
    """Fetch a bundle, check it, and print its folder."""
    from vllm_sauce.bundle import Bundle, hub

    folder = hub.pull(hub.HubName.parse(name), out)
    if model is not None:
        Bundle.load(folder, weights=False).check_model(model)
    typer.echo(folder)


def diff(
    old: Annotated[str, typer.Argument(help="A folder, or a name on the hub.")],
    new: Annotated[str, typer.Argument(help="A folder, or a name on the hub.")],
) -> None:
    """Say what changed between two bundles; exit status 1 if anything did."""
    from vllm_sauce.bundle import Bundle, hub
    from vllm_sauce.bundle.difference import differences

    lines = differences(
        *(Bundle.load(hub.bundle_folder(text), weights=False) for text in (old, new))
    )
    for line in lines:
        typer.echo(line)
    if not lines:
        typer.echo("no difference")
    else:
        raise typer.Exit(1)
