# SPDX-License-Identifier: Apache-2.0
"""An engine that lost the plugin on the way to its processes answers nothing."""

from __future__ import annotations

import pytest

from tests.places import TINY
from tests.plugin.answering import apart


@pytest.mark.engine
def test_an_engine_without_the_plugin_refuses_and_does_not_answer_unedited() -> None:
    """The process that is asked has it: the engine's were told of other plugins."""
    done = apart("-m", "tests.plugin.deaf_engine", TINY / "model", TINY / "bundle")
    told = dict(
        line.removeprefix("TOLD ").split(maxsplit=1)
        for line in done.stdout.splitlines()
        if line.startswith("TOLD ")
    )
    assert set(told) == {"offline", "online"}, done.stderr[-3000:]
    for line in told.values():
        assert line.startswith("ConfigError: the engine's workers do not know sauce")
