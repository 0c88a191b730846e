# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: the best edit of every concept, and the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_sauce.cli.calibration_options import (
    Action,
    ConceptsPerEngine,
    Finalists,
    Negatives,
    Passes,
    Positives,
    Prefer,
    Prune,
    Ranking,
    RetainFloor,
    Screen,
    Watched,
    WorstFloor,
    narrowed,
)


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
    retain_floor: RetainFloor = 0.02,
    worst_floor: WorstFloor = 0.35,
    prefer: Prefer = "forgetting",
    positives: Positives = 48,
    negatives: Negatives = 24,
    watched: Watched = 4,
    screen: Screen = 0.25,
    passes: Passes = 2,
    finalists: Finalists = 6,
    ranking: Ranking = None,
    action: Action = None,
    prune: Prune = True,
    concepts_per_engine: ConceptsPerEngine = 20,
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

    from vllm_sauce.cli.failures import only_shown
    from vllm_sauce.cli.options import (
        engine_arguments,
        resources,
        site_paths,
        stages,
    )
    from vllm_sauce.learning.calibration.config import CalibrationConfig
    from vllm_sauce.learning.calibration.report import table, write_frontiers
    from vllm_sauce.learning.calibration.run import (
        CalibrateRequest,
        calibrate_bundle,
    )

    config = CalibrationConfig(
        retain_floor=retain_floor,
        worst_floor=worst_floor,
        prefer=prefer,
        positives=positives,
        negatives=negatives,
        watched=watched,
        screen=screen,
        passes=passes,
        finalists=finalists,
        prune=prune,
    )
    request = CalibrateRequest(
        model=model,
        saes=site_paths(sae),
        selections=tuple(selection),
        concepts=concepts,
        out=out,
        names=tuple(concept or ()),
        config=narrowed(config, ranking, action),
        concepts_per_engine=concepts_per_engine,
        engine_args=engine_arguments(engine_arg or ()),
        overwrite=overwrite,
        resources=resources(ray, actors, gpus_per_actor, cpus_per_actor),
    )
    with stages() as note:
        bundle = calibrate_bundle(request, note, note)
    Console().print(table(bundle.catalogue))
    typer.echo(f"bundle: {out}; everything that was tried: {request.folder}")
    with only_shown("the frontier of each concept"):
        write_frontiers(request.folder)
