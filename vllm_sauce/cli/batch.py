# SPDX-License-Identifier: Apache-2.0
"""``sauce batch``: answer a file of prompts, each with its own mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Many = list[str] | None


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Rows: a .jsonl or .parquet file.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The answers: a .parquet file.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="A folder, or a model on the hub.")
    ],
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Default: sauce/ in the model's folder."),
    ] = None,
    forget: Annotated[
        Many, typer.Option("--forget", help="Forgotten in every row; repeatable.")
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="1 is the calibrated edit.")
    ] = 1.0,
    forget_column: Annotated[
        str, typer.Option("--forget-column", help="Where a row names its own.")
    ] = "forget",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Of an answer, unless the row says.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Unless the row says.")
    ] = 0.0,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of a cluster, or auto."),
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", help="Engines; several run on a local Ray.")
    ] = 1,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option("--gpus-per-actor", help="Default: 1 where there are GPUs."),
    ] = None,
    cpus_per_actor: Annotated[
        float | None,
        typer.Option("--cpus-per-actor", help="Default: a share of this machine's."),
    ] = None,
    engine_arg: Annotated[
        Many, typer.Option("--engine-arg", help="key=value for vLLM; repeatable.")
    ] = None,
    rows_per_part: Annotated[
        int, typer.Option("--rows-per-part", help="Rows done anew after a crash.")
    ] = 128,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and another run's parts.")
    ] = False,
) -> None:
    """Answer every row of IN, forgetting per row; an interrupted run goes on.

    Exit status: 0 all rows answered, 1 some failed (see OUT.failures.jsonl), 2 the run
    could not go on.
    """
    from rich.console import Console

    from vllm_sauce.batch import job, progress, run
    from vllm_sauce.batch.rows import Defaults
    from vllm_sauce.cli.options import resources

    console = Console(stderr=True)
    try:
        done = run.run(
            job.make_job(
                model=model,
                source=source,
                bundle=bundle,
                defaults=Defaults(
                    forget=tuple(forget or ()),
                    strength=strength,
                    forget_column=forget_column,
                    max_tokens=max_tokens,
                    temperature=temperature,
                ),
                engine_args=job.parse_engine_args(engine_arg or ()),
            ),
            source,
            out,
            resources=resources(ray, actors, gpus_per_actor, cpus_per_actor),
            rows_per_part=rows_per_part,
            overwrite=overwrite,
            progress=progress.Bar(console),
        )
    except KeyboardInterrupt:
        typer.echo("sauce batch: run the same command to go on", err=True)
        raise
    typer.echo(done.line())
    if done.failed:
        raise typer.Exit(1)
