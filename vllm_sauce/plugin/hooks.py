# SPDX-License-Identifier: Apache-2.0
"""Every hook the plugin places into vLLM, in the order a request meets them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_sauce.plugin import bench, compat, engine_core, own_models
from vllm_sauce.plugin.compat import seam_check
from vllm_sauce.plugin.frontend import admission, agreement, entrances
from vllm_sauce.plugin.startup import flags, ranks, settings
from vllm_sauce.plugin.worker import report
from vllm_sauce.scale import orphans


def install() -> None:
    """Place the hooks every process needs; all are inert until sauce is configured.

    Raises: UnsupportedVLLMError.
    """
    orphans.install()
    compat.check_version()
    seam_check.check("all")
    flags.install()
    settings.install()
    admission.install()
    engine_core.install()
    compat.add_worker_call(ranks.CALL, report.report)
    compat.add_worker_call(ranks.LOOK, _look_at_weights)
    agreement.install()
    entrances.install()
    own_models.install()
    bench.install()
    compat.hook("all", "WorkerBase.__init__", _worker_init)


def _look_at_weights(worker: Any) -> None:
    from vllm_sauce.plugin.worker import weights  # torch is imported with it

    weights.look(worker)


def _worker_init(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    if settings.wants_action(vllm_config):
        seam_check.check_worker(vllm_config)
        own_models.register_for(vllm_config)
        if settings.section_of(vllm_config) is not None:
            install_edit()
        if settings.section_of(vllm_config, settings.HARVEST_KEY) is not None:
            install_tap()
    original(self, vllm_config, *args, **kwargs)


@functools.cache
def install_edit() -> None:
    """Place the hooks of a process that runs an edited model, once.

    Left out elsewhere: they import the model runners, seconds of start-up time.
    """
    from vllm_sauce.plugin.worker import canary, injection, lifecycle

    injection.install(injection.inject_edit)
    canary.install()
    lifecycle.install()


@functools.cache
def install_tap() -> None:
    """Place the hooks of a process that harvests activations, once."""
    from vllm_sauce.plugin.tap.harvest_worker import inject_tap
    from vllm_sauce.plugin.worker import injection

    injection.install(inject_tap)
