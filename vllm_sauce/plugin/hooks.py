# SPDX-License-Identifier: Apache-2.0
"""Every hook the plugin places into vLLM, in the order a request meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.plugin import compat, engine_core
from vllm_sauce.plugin.compat import seam_check
from vllm_sauce.plugin.frontend import admission, agreement, bench_client, middleware
from vllm_sauce.plugin.startup import flags, settings
from vllm_sauce.scale import orphans

_worker_installed = False
_tap_installed = False


def install() -> None:
    """Place the hooks every process needs; all are inert until sauce is configured.

    Raises: UnsupportedVLLMError.
    """
    orphans.install()
    compat.check_version()
    seam_check.check("all")
    flags.install()
    bench_client.install()
    settings.install()
    admission.install()
    engine_core.install()
    agreement.install()
    middleware.install()
    compat.wrap(compat.worker_base_cls(), "__init__", _worker_init)


def _worker_init(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    edits = settings.from_vllm_config(vllm_config) is not None
    harvests = settings.harvests(vllm_config)
    if edits or harvests:
        seam_check.check_worker(vllm_config)
    if edits:
        install_worker()
    if harvests:
        install_tap()
    original(self, vllm_config, *args, **kwargs)


def install_worker() -> None:
    """Place the hooks of a process that runs the model, once.

    Left out elsewhere: they import the model runners, seconds of start-up time.
    """
    global _worker_installed
    if _worker_installed:
        return
    from vllm_sauce.plugin.worker import canary, injection, lifecycle, runner_v1

    injection.install()
    runner_v1.install()
    canary.install()
    lifecycle.install()
    _worker_installed = True


def install_tap() -> None:
    """Place the hooks of a process that harvests activations, once."""
    global _tap_installed
    if _tap_installed:
        return
    from vllm_sauce.plugin.tap import harvest_worker

    harvest_worker.install()
    _tap_installed = True
