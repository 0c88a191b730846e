# SPDX-License-Identifier: Apache-2.0
"""An API process whose settings are not the engine's does not get to serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.frontend import agreement

SAUCE = {"bundle": "/b", "digest": "0" * 64, "forget": ["dog"]}
NO_METHOD = RuntimeError("'Worker' object has no attribute 'sauce_settings'")


def start(mine: Any, theirs: list[Any] | Exception, times: int = 1) -> int:
    """Start an API process beside workers; return how often it asked them."""
    asked: list[str] = []

    async def collective_rpc(method: str) -> list[Any]:
        asked.append(method)
        if isinstance(theirs, Exception):
            raise theirs
        return theirs

    async def original(self: Any) -> tuple[str, ...]:
        return ("generate",)

    config = SimpleNamespace(additional_config={} if mine is None else {"sauce": mine})
    llm = SimpleNamespace(vllm_config=config, collective_rpc=collective_rpc)
    for _ in range(times):
        tasks = asyncio.run(agreement._get_supported_tasks(original, llm))
        assert tasks == ("generate",)
    assert set(asked) == {agreement.CALL}
    return len(asked)


def test_equal_settings_serve_and_are_asked_for_once() -> None:
    assert start(SAUCE, [dict(SAUCE), dict(SAUCE)], times=3) == 1
    assert start(None, [None], times=2) == 1


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (None, [SAUCE]),
        (SAUCE, [None]),
        (SAUCE, [SAUCE, {**SAUCE, "digest": "1" * 64}]),
        (SAUCE, [{**SAUCE, "forget": []}]),
    ],
)
def test_other_settings_are_refused(mine: Any, theirs: list[Any]) -> None:
    with pytest.raises(ConfigError, match="disagree about sauce") as told:
        start(mine, theirs)
    assert "start all processes" in str(told.value)


def test_workers_without_the_plugin_serve_only_what_is_plain() -> None:
    with pytest.raises(ConfigError, match="is vllm-sauce installed where they run"):
        start(SAUCE, NO_METHOD)
    assert start(None, NO_METHOD) == 1
