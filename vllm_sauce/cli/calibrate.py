# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: the best edit of every concept, and the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    model: Annotated[str, typer.Option(help="Folder of the model.")],
    sae: Annotated[
        list[str],
        typer.Option(help="SITE=FOLDER of a bundle or an SAELens SAE; once a site."),
    ],
    selection: Annotated[
        list[Path], typer.Option(help="What sauce select wrote; once a site.")
    ],
    concepts: Annotated[Path, typer.Option(help="concepts.yaml.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    concept: Annotated[
        list[str] | None, typer.Option(help="Only this concept; again for more.")
    ] = None,
    retain_floor: Annotated[
        float, typer.Option(help="Share that IRA and CRA may lose each.")
    ] = 0.02,
    worst_floor: Annotated[
        float, typer.Option(help="Share that any one other concept may lose.")
    ] = 0.35,
    prefer: Annotated[
        str, typer.Option(help="Of what keeps to the floors: forgetting or balance.")
    ] = "forgetting",
    positives: Annotated[int, typer.Option(help="Examples with a concept.")] = 24,
    negatives: Annotated[int, typer.Option(help="Examples without it.")] = 24,
    watched: Annotated[int, typer.Option(help="Examples of every other concept.")] = 4,
    screen: Annotated[
        float, typer.Option(help="Share of the questions that the search asks.")
    ] = 0.25,
    passes: Annotated[
        int, typer.Option(help="How often it goes through all settings at most.")
    ] = 2,
    finalists: Annotated[int, typer.Option(help="Settings asked everything.")] = 6,
    concepts_per_engine: Annotated[
        int, typer.Option(help="Concepts whose candidates are asked together.")
    ] = 20,
    actors: Annotated[
        int, typer.Option(help="Processes side by side, each with an engine.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster for them.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="Default: 1 where Ray finds GPUs.")
    ] = None,
    cpus_per_actor: Annotated[
        float | None, typer.Option(help="Default: an equal share; 1 on a cluster.")
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for vllm.LLM, VALUE as JSON; may be given again."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the bundle that is there.")
    ] = False,
) -> None:
    """Search latents, edit, gate and site of each concept; run again to go on."""
    from rich.console import Console

    from vllm_sauce.cli.options import (
        engine_arguments,
        resources,
        site_paths,
        stages,
    )
    from vllm_sauce.errors import SauceError
    from vllm_sauce.evaluation.calibrate import CalibrationConfig
    from vllm_sauce.evaluation.calibration_report import table, write_frontiers
    from vllm_sauce.evaluation.calibration_run import (
        CalibrateRequest,
        calibrate_bundle,
    )

    try:
        request = CalibrateRequest(
            model=model,
            saes=site_paths(sae),
            selections=tuple(selection),
            concepts=concepts,
            out=out,
            names=tuple(concept or ()),
            config=CalibrationConfig(
                retain_floor=retain_floor,
                worst_floor=worst_floor,
                prefer=prefer,
                positives=positives,
                watched=watched,
                screen=screen,
                passes=passes,
                negatives=negatives,
                finalists=finalists,
            ),
            concepts_per_engine=concepts_per_engine,
            engine_args=engine_arguments(engine_arg or ()),
            overwrite=overwrite,
            resources=resources(ray, actors, gpus_per_actor, cpus_per_actor),
        )
        with stages() as note:
            bundle = calibrate_bundle(request, note, note)
        write_frontiers(request.folder)
    except SauceError as error:
        typer.echo(f"sauce calibrate: {error}", err=True)
        raise typer.Exit(2) from error
    Console().print(table(bundle.catalogue))
    typer.echo(f"bundle: {out}; everything that was tried: {request.folder}")
