# SPDX-License-Identifier: Apache-2.0
"""An API process serves only with the settings that the engines' workers have.

Each process makes its own configuration. One that has lost sauce, or loaded another
bundle, would admit requests that the workers edit otherwise, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.startup.ranks import CALL, check


def install() -> None:
    """Let API processes ask workers what they run with, before they serve."""
    compat.hook("all", "AsyncLLM.get_supported_tasks", _get_supported_tasks)


async def _get_supported_tasks(original: Callable[..., Any], self: Any) -> Any:
    # Every server awaits this between the engines' start and the first request.
    tasks = await original(self)
    if not getattr(self, "_sauce_agrees", False):
        try:
            engines = await compat.call_workers(self, CALL)
        except Exception as error:
            # Workers without the plugin have no such method, and edit nothing.
            if settings.section_of(self.vllm_config) is not None:
                raise ConfigError(
                    "the engine's workers do not know sauce, so they would edit "
                    f"nothing ({error}); is vllm-sauce installed where they run?"
                ) from error
            engines = []
        for reports in engines:
            check(self.vllm_config, reports)
        self._sauce_agrees = True
    return tasks
