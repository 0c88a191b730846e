# SPDX-License-Identifier: Apache-2.0
"""A process whose settings are not the engines' takes no request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

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


def engine(mine: Any, rpc: Any) -> list[str]:
    """Make an ``LLMEngine`` beside a worker; return what was done to it, in order."""
    done: list[str] = []

    def collective_rpc(name: str) -> list[Any]:
        done.append(name)
        if isinstance(rpc, Exception):
            raise rpc
        return [{"settings": rpc, "sites": [], "digest": "0" * 64, "proven": True}]

    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
    config = SimpleNamespace(
        additional_config={} if mine is None else {"sauce": mine},
        parallel_config=parallel,
    )
    llm = SimpleNamespace(
        collective_rpc=collective_rpc,
        engine_core=SimpleNamespace(shutdown=lambda: done.append("shutdown")),
    )

    def original(self: Any, vllm_config: Any) -> None:
        assert self is llm and vllm_config is config
        done.append("made")

    try:
        agreement._engine_init(original, llm, config)
    except (ConfigError, EngineDeadError) as error:
        done.append(f"{type(error).__name__}: {error}")
    return done


def test_an_engine_without_a_server_is_asked_as_it_starts() -> None:
    assert engine(SAUCE, dict(SAUCE)) == ["made", CALL]
    *order, told = engine(SAUCE, NO_METHOD)
    assert order == ["made", CALL, "shutdown"] and "installed where they run" in told
    *order, told = engine(SAUCE, {**SAUCE, "forget": []})
    assert order == ["made", CALL, "shutdown"] and "disagree about sauce" in told
    # One that died says so, and knew sauce for all we know.
    *order, told = engine(SAUCE, EngineDeadError())
    assert order == ["made", CALL, "shutdown"] and told.startswith("EngineDeadError")
    # A core with sauce takes nothing that a process without it sends.
    assert engine(None, NO_METHOD) == ["made"]


@pytest.mark.parametrize(("mine", "asked"), [(SAUCE, 1), (None, 0)])
def test_a_request_without_a_server_asks_once(mine: Any, asked: int) -> None:
    calls: list[Any] = []

    async def call(*args: Any, engine: bytes) -> list[Any]:
        calls.append(args)
        return [{"settings": mine, "sites": [], "digest": "0" * 64, "proven": True}]

    async def original(self: Any, request_id: str, *, priority: int) -> tuple[str, int]:
        return request_id, priority

    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
    llm = SimpleNamespace(
        vllm_config=SimpleNamespace(
            additional_config={} if mine is None else {"sauce": mine},
            parallel_config=parallel,
        ),
        engine_core=SimpleNamespace(core_engines=[b"0"], _call_utility_async=call),
    )
    for name in ("1", "2"):
        added = agreement._add_request(original, llm, name, priority=3)
        assert asyncio.run(added) == (name, 3)
    assert len(calls) == asked
