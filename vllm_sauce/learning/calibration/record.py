# SPDX-License-Identifier: Apache-2.0
"""What is kept of each concept's calibration: a JSON file, read again to go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from vllm_sauce.concepts import FORGET_FLOOR, Concept, SiteEdit
from vllm_sauce.concepts.engine_mode import MEASURED_AS
from vllm_sauce.evaluation.metrics import Outcome, forgets
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.examiner import Trial
from vllm_sauce.learning.calibration.search import Calibrated
from vllm_sauce.learning.calibration.setting import setting_to_json


def record_path(folder: Path, name: str) -> Path:
    """Return where a concept's record is kept."""
    # Names may hold anything printable; files may not.
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return folder / f"concept-{digest}.json"


def record(
    name: str,
    one: Calibrated,
    scores: Outcome,
    base: Outcome,
    mode: Mapping[str, object],
) -> str:
    """Return a concept's record; ``scores`` and ``base`` are of the scoring split.

    ``mode``: of the engine that was asked.
    """
    best = one.best
    entry = {
        MEASURED_AS: dict(mode),
        "concept": name,
        "edits": {site: asdict(edit) for site, edit in one.edits.items()},
        "setting": setting_to_json(best.setting),
        "common": one.common,
        "within_floor": one.within_floor,
        "calibration": {"edited": best.scores.to_json(), "base": one.base.to_json()},
        "scoring": {"edited": scores.to_json(), "base": base.to_json()},
        "worst_other": {
            "calibration": _worst(*best.scores.worst(one.base)),
            "scoring": _worst(*scores.worst(base)),
        },
        "frontier": [_trial(trial) for trial in frontier(one.trials)],
        "trials": [_trial(trial) for trial in one.trials],
    }
    return json.dumps(entry, indent=1) + "\n"


def concept_of(
    entry: Mapping[str, Any], domain: str, config: CalibrationConfig
) -> Concept:
    """Return the catalogue's entry of a record."""
    edits = {
        site: SiteEdit(**{key: tuple(values) for key, values in edit.items()})
        for site, edit in entry["edits"].items()
    }
    scoring = entry["scoring"]
    base = {f"base_{n}": s for n, s in scoring["base"].items() if n != "HM"}
    return Concept(
        name=entry["concept"],
        domain=domain,
        edits=edits,
        provenance={
            "method": "sauce calibrate: ranking, k, gate and action at each site",
            "settings": entry["setting"],
            "common": entry["common"],
            "seed": config.seed,
            "within_floor": entry["within_floor"],
            "retain_floor": config.retain_floor,
            "tried": len(entry["trials"]),
            "calibration": entry["calibration"]["edited"],
            "worst_other": entry["worst_other"]["scoring"],
            "worst_floor": config.worst_floor,
            FORGET_FLOOR: config.forget_floor,
            # A run that was begun before it was kept has none.
            **{key: entry[key] for key in (MEASURED_AS,) if key in entry},
        },
        scores={**scoring["edited"], **base},
        forgotten=forgets(scoring["edited"], config.forget_floor),
    )


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials on all questions that no other beats in both respects.

    Forgetting (of UAg and UAd) against keeping (of IRA and CRA), least forgetting
    first.
    """
    whole = [
        ((trial.scores.forgetting, _keeping(trial.scores)), trial)
        for trial in trials
        if trial.share == 1.0
    ]
    kept = [
        (one, trial)
        for one, trial in whole
        if not any(x >= one[0] and y >= one[1] and (x, y) != one for (x, y), _ in whole)
    ]
    return [trial for _, trial in sorted(kept, key=itemgetter(0))]


def _keeping(scores: Outcome) -> float:
    """Return the smaller of IRA and CRA."""
    return min(s for s in (scores.IRA, scores.CRA) if s is not None)


def _trial(trial: Trial) -> dict[str, object]:
    return {
        "setting": setting_to_json(trial.setting),
        "share": trial.share,
        "objective": round(trial.objective, 4),
        "sure": {name: round(value, 4) for name, value in asdict(trial.sure).items()},
        "worst_other": _worst(*trial.worst),
        "scores": trial.scores.to_json(),
        "forgetting": round(trial.scores.forgetting, 4),
        "keeping": round(_keeping(trial.scores), 4),
    }


def _worst(name: str, lost: float) -> dict[str, object]:
    return {"concept": name, "lost": round(lost, 4)}
