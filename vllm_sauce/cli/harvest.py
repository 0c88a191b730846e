# SPDX-License-Identifier: Apache-2.0
"""``sauce harvest``: a model's activations at its sites, into shards on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def harvest(
    model: Annotated[str, typer.Option(help="Folder of the model.")],
    out: Annotated[Path, typer.Option(help="New folder, or one to go on with.")],
    site: Annotated[
        list[str], typer.Option(help="vision or decoder.<i>; may be given again.")
    ],
    concepts: Annotated[
        Path | None, typer.Option(help="concepts.yaml whose examples are shown.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only its selection, calibration or scoring.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures, instead of concepts.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="JSON lines with pictures, prompts or both.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The table's column of pictures.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="The table's column of prompts.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="File of prompts without pictures, one a line.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Asked about each picture; again for more.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens the model writes; they are harvested too.")
    ] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="Of the shards; default: the model's.")
    ] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens of a shard.")] = 65_536,
    in_flight: Annotated[
        int, typer.Option(help="Samples in the engine at a time; bounds memory.")
    ] = 256,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for vllm.LLM, VALUE as JSON; may be given again."),
    ] = None,
    actors: Annotated[
        int, typer.Option(help="Engines; more than one, or --ray, run on Ray.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of Ray's cluster, or auto.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="Default: 1 where there are GPUs.")
    ] = None,
    cpus_per_actor: Annotated[
        float | None, typer.Option(help="Default: a share of this machine's.")
    ] = None,
) -> None:
    """Take activations with vLLM; run it again to go on where it was stopped."""
    from rich.console import Console

    from vllm_sauce.cli.options import engine_arguments, progress_bar, resources
    from vllm_sauce.data.sample_sources import find_samples
    from vllm_sauce.data.samples import distinct
    from vllm_sauce.learning.harvest.actors import harvest_anywhere
    from vllm_sauce.learning.harvest.engine import HarvestRequest

    where = resources(ray, actors, gpus_per_actor, cpus_per_actor)
    samples, repeated = distinct(
        find_samples(
            concepts=concepts,
            split=split,
            pictures=pictures,
            table=table,
            image_column=image_column,
            prompt_column=prompt_column,
            texts=texts,
            prompts=prompt or (),
        )
    )
    request = HarvestRequest(
        model=model,
        sites=tuple(site),
        samples=tuple(samples),
        out=out,
        max_tokens=max_tokens,
        dtype=dtype,
        shard_tokens=shard_tokens,
        in_flight=in_flight,
        engine_args=engine_arguments(engine_arg or ()),
    )
    with progress_bar("samples") as progress:
        report = harvest_anywhere(request, where, progress)
    Console().print(report.as_table(out, len(repeated)))
    if report.failed:
        typer.echo(
            f"{len(report.failed)} samples failed: {out}/failures.jsonl", err=True
        )
        raise typer.Exit(1)
