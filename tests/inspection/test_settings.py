# SPDX-License-Identifier: Apache-2.0
"""What an inspection is told, checked before it looks at anything."""

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.inspection.questions import Wording
from vllm_sauce.inspection.settings import InspectSettings


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="latents"):
        InspectSettings(latents=0)
    with pytest.raises(ConfigError, match="concept"):
        Wording.of_options("Is it there?", [])
