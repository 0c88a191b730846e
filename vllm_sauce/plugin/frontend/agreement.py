# SPDX-License-Identifier: Apache-2.0
"""An API process serves only with the settings that the engine's workers have.

Each process makes its own configuration. One that has lost sauce, or loaded another
bundle, would admit requests that the workers edit otherwise, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings

CALL = "sauce_settings"
"""The worker's method that an API process calls."""


def install() -> None:
    """Let workers say what they run with, and API processes ask before they serve."""
    compat.add_worker_call(CALL, lambda worker: settings.section_of(worker.vllm_config))
    compat.hook("all", "AsyncLLM.get_supported_tasks", _get_supported_tasks)


async def _get_supported_tasks(original: Callable[..., Any], self: Any) -> Any:
    # Every server awaits this between the engine's start and the first request.
    tasks = await original(self)
    if not getattr(self, "_sauce_agrees", False):
        mine = settings.section_of(self.vllm_config)
        try:
            theirs = await self.collective_rpc(CALL)
        except Exception as error:
            # Workers without the plugin have no such method, and edit nothing.
            if mine is not None:
                raise ConfigError(
                    "the engine's workers do not know sauce, so they would edit "
                    f"nothing ({error}); is vllm-sauce installed where they run?"
                ) from error
            theirs = []
        check(mine, theirs)
        self._sauce_agrees = True
    return tasks


def check(mine: Any, theirs: list[Any]) -> None:
    """Refuse to serve when a worker runs with other settings.

    Raises: ConfigError.
    """
    for section in theirs:
        if section != mine:
            raise ConfigError(
                "this API process and the engine disagree about sauce: "
                f"{json.dumps(mine, sort_keys=True)} here, "
                f"{json.dumps(section, sort_keys=True)} there; start all processes "
                "of a server together, with the same arguments and bundle"
            )
