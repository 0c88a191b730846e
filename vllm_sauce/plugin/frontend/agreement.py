# SPDX-License-Identifier: Apache-2.0
"""A process takes requests only with the settings that its engines' workers have.

Each process makes its own configuration. One that has lost sauce, or loaded another
bundle, would admit requests that the workers edit otherwise; engines that have lost it
would answer them unedited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.startup.ranks import CALL, Report, check


def install() -> None:
    """Let processes ask workers what they run with, before they take requests."""
    compat.hook("all", "AsyncLLM.get_supported_tasks", _get_supported_tasks)
    compat.hook("all", "AsyncLLM.add_request", _add_request)
    compat.hook("all", "LLMEngine.__init__", _engine_init)


async def _get_supported_tasks(original: Callable[..., Any], self: Any) -> Any:
    # Every server awaits this between the engines' start and the first request.
    tasks = await original(self)
    await _agree(self)
    return tasks


async def _add_request(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    # vLLM awaits the above, too, but for a request that a client has made itself.
    if settings.section_of(self.vllm_config) is not None:
        await _agree(self)
    return await original(self, *args, **kwargs)


async def _agree(llm: Any) -> None:
    if getattr(llm, "_sauce_agrees", False):
        return
    engines: list[list[Report]] = []
    try:
        engines = await compat.call_workers(llm, CALL)
    except Exception as error:
        # Workers without the plugin have no such method, and edit nothing.
        if settings.section_of(llm.vllm_config) is not None:
            _refuse(error)
    for reports in engines:
        check(llm.vllm_config, reports)
    llm._sauce_agrees = True


def _engine_init(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    original(self, vllm_config, *args, **kwargs)
    if settings.section_of(vllm_config) is None:
        return  # an engine with sauce takes no request from here
    try:
        try:
            reports = self.collective_rpc(CALL)
        except Exception as error:
            _refuse(error)
        check(vllm_config, reports)
    except BaseException:
        self.engine_core.shutdown()
        raise


def _refuse(error: Exception) -> NoReturn:
    """Raise what a failed call to workers means. Raises: ConfigError"""
    if compat.is_engine_dead(error):
        raise error
    raise ConfigError(
        "the engine's workers do not know sauce, so they would edit nothing "
        f"({error}); is vllm-sauce installed where they run, and VLLM_PLUGINS the same?"
    ) from error
