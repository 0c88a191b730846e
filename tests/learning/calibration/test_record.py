# SPDX-License-Identifier: Apache-2.0
"""What a calibration's record says of a concept in a catalogue."""

import pytest

from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.record import concept_of


def entry(UAg, UAd):
    edit = {"latents": [3], "gamma": [0.0], "shift": [0.0], "gate": [0.0]}
    scores = {"UAg": UAg, "UAd": UAd, "IRA": 1.0, "CRA": 1.0, "HM": 0.9}
    return {
        "concept": "dog",
        "edits": {"vision": edit},
        "setting": {},
        "common": False,
        "within_floor": True,
        "trials": [],
        "calibration": {"edited": {"UAg": 1.0, "UAd": 1.0}},
        # What is measured counts, not what the search saw.
        "scoring": {"edited": scores, "base": scores},
        "worst_other": {"scoring": {}},
        "measured_as": {"dtype": "float32", "eager": True},
    }


@pytest.mark.parametrize(
    ("UAg", "UAd", "forgotten"),
    [
        (0.8, 0.8, True),
        (0.79, 1.0, False),
        (1.0, 0.79, False),
        (0.9, None, True),
        (0.0, None, False),
    ],
)
def test_a_concept_below_the_floor_is_not_forgotten(UAg, UAd, forgotten):
    found = concept_of(entry(UAg, UAd), "objects", CalibrationConfig())
    assert found.forgotten is forgotten
    assert found.provenance["measured_as"] == {"dtype": "float32", "eager": True}
    lower = CalibrationConfig(forget_floor=0.0)
    assert concept_of(entry(UAg, UAd), "objects", lower).forgotten
