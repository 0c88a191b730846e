# SPDX-License-Identifier: Apache-2.0
"""Actions as they are written."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.setting import Action, SiteSetting, taken_away


def test_actions_are_read():
    assert Action.parse("scale -0.5") == Action("scale -0.5", False, -0.5)
    assert Action.parse("clamp 1") == Action("clamp 1", True, 1.0)


@pytest.mark.parametrize("text", ["scale", "scale 1", "scale -101", "clamp 0", "cut 1"])
def test_actions_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="an action is"):
        Action.parse(text)


def test_what_a_setting_takes_away():
    """Two latents by half, one to minus its largest: and the gates, of equal shares."""
    one = SiteSetting(
        site="vision", ranking="share", k=2, gate=0.9, action=Action.parse("scale 0.5")
    )
    other = SiteSetting(
        site="decoder.1", ranking="file", k=1, gate=0.5, action=Action.parse("clamp 1")
    )
    assert taken_away((one,)) == (1.0, -0.9)
    assert taken_away((one, other)) == (3.0, -1.4)
    assert taken_away(()) == (0.0, 0.0)
