# SPDX-License-Identifier: Apache-2.0
"""Write what was measured of a bundle into it; what it edits stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import FORGET_FLOOR, Catalogue, Concept
from vllm_sauce.concepts.engine_mode import MEASURED_AS
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import forgets
from vllm_sauce.measuring.measure import RUN_FILE, write_run
from vllm_sauce.measuring.scores import Figures, Results
from vllm_sauce.measuring.settings import OURS, PLAIN, EvalRequest

SCORED = "scored"
"""Key of a concept's provenance: what its scores are of. Without it they are of
calibration, on questions of its scoring split."""


def record(request: EvalRequest, found: Results) -> tuple[str, ...]:
    """Write into the bundle what its concepts forget and keep, alone and at once.

    Returns those that it no longer offers: below the floor they were calibrated with.

    Raises: ConfigError if the bundle is not what was asked; BundleError
    """
    bundle, path = Bundle.load(request.bundle), request.out / RUN_FILE
    run = json.loads(path.read_text())
    if bundle.digest != run["bundle"]:
        raise ConfigError(f"{request.bundle} is another bundle now; measure it anew")
    # An older version's run does not tell; what calibration told is of its scores.
    mode = {MEASURED_AS: run[MEASURED_AS]} if MEASURED_AS in run else {}
    scored = Catalogue(
        _scored(
            concept,
            found.alone[OURS][name],
            found.alone[PLAIN][name],
            {"by": "sauce eval --record", "split": request.split},
            mode,
        )
        for name, concept in bundle.catalogue.items()
    )
    recorded = bundle.with_figures(scored, dict(bundle.together) | _together(found))
    recorded.save(request.bundle)
    # It edits as before: what was answered is an answer of this one.
    write_run(path, run | {"bundle": recorded.digest})
    return tuple(sorted({*scored.weak()} - {*bundle.catalogue.weak()}))


def _scored(
    concept: Concept,
    ours: Figures,
    plain: Figures,
    told: Mapping[str, str],
    mode: Mapping[str, object],
) -> Concept:
    """Return a concept with these scores; no figure makes one forgotten that was not.

    ``told``: what they are of.
    """
    scores = _scores(ours)
    base = {f"base_{n}": value for n, value in _scores(plain).items() if n != "HM"}
    provenance = {k: v for k, v in concept.provenance.items() if k != MEASURED_AS}
    provenance |= {SCORED: {**told, "n": {n: one.n for n, one in ours.items()}}}
    floor = provenance.get(FORGET_FLOOR)
    kept = not isinstance(floor, int | float) or forgets(scores, floor)
    return replace(
        concept,
        scores=scores | base,
        provenance={**provenance, **mode},
        forgotten=concept.forgotten and kept,
    )


def _scores(figures: Figures) -> dict[str, float | None]:
    return {n: round(one.value, 4) if one.n else None for n, one in figures.items()}


def _together(found: Results) -> dict[int, dict[str, float]]:
    together = {}
    for group, figures in found.together.items():
        count, _, rest = group.partition(" ")
        if rest == "at once":
            told = {name: each.value for name, each in figures.items() if each.n}
            together[int(count)] = {**told, "n": figures["malformed"].n}
    return together
