# SPDX-License-Identifier: Apache-2.0
"""How a calibration searches, as ``sauce calibrate`` and ``sauce learn`` take it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from vllm_sauce.learning.calibration.config import CalibrationConfig

RetainFloor = Annotated[
    float, typer.Option(help="Share that IRA and CRA may lose each.")
]
WorstFloor = Annotated[
    float, typer.Option(help="Share that any one other concept may lose.")
]
Prefer = Annotated[
    str, typer.Option(help="Of what keeps to the floors: forgetting or balance.")
]
Positives = Annotated[int, typer.Option(help="Examples with a concept.")]
Negatives = Annotated[int, typer.Option(help="Examples without it.")]
Watched = Annotated[int, typer.Option(help="Examples of every other concept.")]
Screen = Annotated[
    float, typer.Option(help="Share of the questions that the search asks.")
]
Passes = Annotated[
    int, typer.Option(help="How often it goes through all settings at most.")
]
Finalists = Annotated[int, typer.Option(help="Settings asked everything.")]
Ranking = Annotated[
    list[str] | None,
    typer.Option(
        help="Score that latents may be ranked by, or file; may be given again. "
        "Default: all of the selection."
    ),
]
Action = Annotated[
    list[str] | None,
    typer.Option(
        help='"scale G" or "clamp C"; may be given again. Default: gamma 0 to -16, '
        "clamps 0.5 to 2."
    ),
]
Prune = Annotated[
    bool, typer.Option(help="Drop latents that the chosen edit does not need.")
]
ConceptsPerEngine = Annotated[
    int, typer.Option(help="Concepts whose candidates are asked together.")
]


def narrowed(
    config: CalibrationConfig,
    ranking: list[str] | None,
    action: list[str] | None,
) -> CalibrationConfig:
    """Return a calibration that tries only these rankings and actions, if any."""
    actions = tuple(action) if action else config.actions
    return replace(config, rankings=tuple(ranking or ()), actions=actions)
