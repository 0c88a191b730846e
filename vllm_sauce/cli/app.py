# SPDX-License-Identifier: Apache-2.0
"""The ``sauce`` command's subcommands; each has a file of its own."""

from __future__ import annotations

import typer

from vllm_sauce.cli import (
    batch,
    bundles,
    calibrate,
    demo,
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
app.command("calibrate")(calibrate.calibrate)
app.command("batch")(batch.batch)
app.command("demo")(demo.demo)
app.command("harvest")(harvest.harvest)
app.command("import")(import_sae.import_sae)
app.command("diff")(bundles.diff)
app.command("inspect")(inspect.inspect)
app.command("learn")(learn.learn)
app.command("pull")(bundles.pull)
app.command("push")(bundles.push)
app.command("train")(train.train)
app.command("select")(select.select)


@app.callback()
def main() -> None:
    """Concept unlearning for vision-language models served by vLLM."""
