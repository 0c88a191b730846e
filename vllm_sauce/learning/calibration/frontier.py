# SPDX-License-Identifier: Apache-2.0
"""What can be forgotten at what price: the trials that none beats in both respects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_sauce.evaluation.metrics import Outcome

if TYPE_CHECKING:
    from vllm_sauce.learning.calibration.examiner import Trial


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials on all questions that no other beats in both respects.

    Forgetting (of UAg and UAd) against keeping (of IRA and CRA), least forgetting
    first.
    """
    whole = [trial for trial in trials if trial.share == 1.0]
    points = {id(t): (t.scores.forgetting, keeping(t.scores)) for t in whole}

    def beaten(trial: Trial) -> bool:
        x, y = points[id(trial)]
        return any(
            other[0] >= x and other[1] >= y and other != (x, y)
            for other in points.values()
        )

    kept = [trial for trial in whole if not beaten(trial)]
    return sorted(kept, key=lambda trial: points[id(trial)])


def keeping(scores: Outcome) -> float:
    """Return the smaller of IRA and CRA."""
    return min(s for s in (scores.IRA, scores.CRA) if s is not None)
