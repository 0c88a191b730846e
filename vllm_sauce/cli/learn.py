# SPDX-License-Identifier: Apache-2.0
"""``sauce learn``: pictures with a thing and without it become a bundle."""

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


def learn(
    model: Annotated[str, typer.Option(help="Folder of the model.")],
    site: Annotated[
        list[str], typer.Option(help="vision or decoder.<i>; may be given again.")
    ],
    concepts: Annotated[Path, typer.Option(help="concepts.yaml.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    sae: Annotated[
        list[str] | None,
        typer.Option(
            help="SITE=SAE: a bundle, an SAELens SAE, or a public SAE to import. "
            "Sites without one are trained."
        ),
    ] = None,
    train_pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures to train on, or JSON lines with the columns image "
            "and prompt; else the concepts' own."
        ),
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="Of SAEs that are trained; see sauce train.")
    ] = "batchtopk",
    d_sae: Annotated[
        int | None, typer.Option(help="Latents; default: 16 times the width.")
    ] = None,
    k: Annotated[float, typer.Option(help="Latents a token.")] = 32,
    l1: Annotated[float, typer.Option(help="Penalty; standard, gated.")] = 1.0,
    tokens: Annotated[int, typer.Option(help="Rows to learn from.")] = 2_560_000,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 4e-4,
    device: Annotated[str, typer.Option(help="For training: cpu, cuda, ...")] = "cpu",
    score: Annotated[str, typer.Option(help="What ranks latents.")] = "share",
    latents: Annotated[int, typer.Option(help="Latents to choose from.")] = 64,
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
    actors: Annotated[
        int, typer.Option(help="Processes that calibrate, each with an engine.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster for them.")
    ] = None,
    concepts_per_engine: ConceptsPerEngine = 20,
    report: Annotated[bool, typer.Option(help="Draw a page at the end.")] = True,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for vllm.LLM.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will take, and stop.")
    ] = False,
    plan_pictures: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --plan: so many pictures to train on, none needed here."
        ),
    ] = None,
) -> None:
    """Harvest, train or import, select, calibrate; run it again to go on."""
    from rich.console import Console

    from vllm_sauce.cli.options import engine_arguments, site_saes
    from vllm_sauce.errors import ConfigError
    from vllm_sauce.learning import learn as logic
    from vllm_sauce.learning import plan as learn_plan
    from vllm_sauce.learning.calibration.config import CalibrationConfig

    console = Console(stderr=True)

    def announce(number: int, total: int, name: str, what: str) -> None:
        console.print(f"[bold]\\[{number}/{total}][/bold] {name}: {what}")

    engine_arguments(engine_arg or ())  # refused before anything runs
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
    request = logic.LearnRequest(
        model=model,
        sites=tuple(site),
        concepts=concepts,
        out=out,
        saes=site_saes(sae or ()),
        train_pictures=train_pictures,
        architecture=architecture,
        d_sae=d_sae,
        k=k,
        l1=l1,
        tokens=tokens,
        learning_rate=lr,
        device=device,
        score=score,
        latents=latents,
        calibration=narrowed(config, ranking, action),
        actors=actors,
        ray=ray,
        concepts_per_engine=concepts_per_engine,
        report=report,
        engine_args=tuple(engine_arg or ()),
        seed=seed,
    )
    if plan_pictures is not None and not plan:
        raise ConfigError("--plan-pictures is a number to plan with; add --plan")
    Console().print(learn_plan.planned(request, plan_pictures))
    if plan:
        return
    seconds = logic.learn(request, announce)
    for name, spent in seconds.items():
        typer.echo(f"{name}: {spent:.0f} s")
    typer.echo(f"bundle: {out}; what was measured on the way: {request.folder}")
