# SPDX-License-Identifier: Apache-2.0
"""An examiner of two latents, for the files that look at the search."""

import pytest

from tests.learning.calibration.examined import CONFIG, Engine, Questions, choices_of
from vllm_sauce.learning.calibration.examiner import Examiner


@pytest.fixture
def choices():
    return choices_of(2)


@pytest.fixture
def examiner(choices):
    return Examiner(Engine(), {"dog": choices}, Questions(), CONFIG)
