# SPDX-License-Identifier: Apache-2.0
"""Actions as they are written."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.setting import Action


def test_actions_are_read():
    assert Action.parse("scale -0.5") == Action("scale -0.5", False, -0.5)
    assert Action.parse("clamp 1") == Action("clamp 1", True, 1.0)


@pytest.mark.parametrize("text", ["scale", "scale 1", "scale -101", "clamp 0", "cut 1"])
def test_actions_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="an action is"):
        Action.parse(text)
