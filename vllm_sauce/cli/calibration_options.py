# SPDX-License-Identifier: Apache-2.0
"""How a calibration searches, as ``sauce calibrate`` and ``sauce learn`` take it."""

from __future__ import annotations

from typing import Annotated

import typer

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
ConceptsPerEngine = Annotated[
    int, typer.Option(help="Concepts whose candidates are asked together.")
]
