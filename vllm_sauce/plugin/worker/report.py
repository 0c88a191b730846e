# SPDX-License-Identifier: Apache-2.0
"""What each rank of an engine says of its edit; ``startup/ranks`` has what it must."""

from __future__ import annotations

from typing import Any

from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.startup.ranks import Report


def report(worker: Any) -> Report:
    """Return a rank's settings and, once its model is loaded, what it edits with."""
    from vllm_sauce.plugin.worker.runtime import runtime_of
    from vllm_sauce_kernels.masked_edit import kernel_choice

    section = settings.section_of(worker.vllm_config)
    runtime = None if section is None else runtime_of(worker.model_runner.model)
    if runtime is None:
        return {"settings": section, "sites": [], "proven": False}
    return {
        "settings": section,
        "digest": runtime.bundle.digest,
        "sites": sorted(runtime.tables),
        "kernel": kernel_choice(),
        "weights": runtime.weights,
        "proven": runtime.proven,
    }
