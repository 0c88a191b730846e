# SPDX-License-Identifier: Apache-2.0
"""An API process whose settings are not the engines' does not get to serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.frontend import agreement
from vllm_sauce.plugin.startup.ranks import CALL

SAUCE = {"bundle": "/b", "digest": "0" * 64, "forget": ["dog"], "sites": []}
NO_METHOD = RuntimeError("'Worker' object has no attribute 'sauce_report'")


def start(mine: Any, *engines: Any, times: int = 1) -> int:
    """Start an API process beside engines; return how often it asked each.

    Each engine is what its one rank has for settings, or what asking it raises.
    """
    asked: list[Any] = []

    async def call(name: str, *args: Any, engine: bytes) -> list[Any]:
        asked.append((name, *args))
        theirs = engines[int(engine)]
        if isinstance(theirs, Exception):
            raise theirs
        return [
            {"settings": theirs, "sites": [], "digest": "0" * 64, "proven": True},
        ]

    async def original(self: Any) -> tuple[str, ...]:
        return ("generate",)

    config = SimpleNamespace(
        additional_config={} if mine is None else {"sauce": mine},
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1, pipeline_parallel_size=1
        ),
    )
    client = SimpleNamespace(
        core_engines=[b"%d" % number for number in range(len(engines))],
        _call_utility_async=call,
    )
    llm = SimpleNamespace(vllm_config=config, engine_core=client)
    for _ in range(times):
        tasks = asyncio.run(agreement._get_supported_tasks(original, llm))
        assert tasks == ("generate",)
    assert set(asked) == {("collective_rpc", CALL, None, (), None)}
    return len(asked)


def test_equal_settings_serve_and_are_asked_for_once() -> None:
    assert start(SAUCE, dict(SAUCE), dict(SAUCE), times=3) == 2
    assert start(None, None, times=2) == 1


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(None, [SAUCE]), (SAUCE, [None]), (SAUCE, [SAUCE, {**SAUCE, "forget": []}])],
)
def test_other_settings_of_any_engine_are_refused(mine: Any, theirs: list[Any]) -> None:
    with pytest.raises(ConfigError, match="disagree about sauce"):
        start(mine, *theirs)


def test_workers_without_the_plugin_serve_only_what_is_plain() -> None:
    with pytest.raises(ConfigError, match="is vllm-sauce installed where they run"):
        start(SAUCE, SAUCE, NO_METHOD)
    assert start(None, NO_METHOD) == 1
