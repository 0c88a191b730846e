# SPDX-License-Identifier: Apache-2.0
"""What each rank of an engine says of its edit, and what all of them must have said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_sauce.errors import CanaryError, ConfigError
from vllm_sauce.plugin.startup import settings

CALL = "sauce_report"
"""The worker's method, which engine cores and API processes call."""

Report = Mapping[str, Any]


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
        "proven": runtime.proven,
    }


def check(vllm_config: Any, reports: Sequence[Report]) -> None:
    """Check that all ranks of an engine edit as a process's configuration says.

    Raises: ConfigError for other settings, CanaryError for a site that a rank does not
        edit, a bundle that it does not have, or a proof that is missing
    """
    mine = settings.section_of(vllm_config)
    for one in reports:
        if one["settings"] != mine:
            raise ConfigError(
                "this process and the engine disagree about sauce: "
                f"{json.dumps(mine, sort_keys=True)} here, "
                f"{json.dumps(one['settings'], sort_keys=True)} there; start all "
                "processes of a server together, with the same arguments and bundle"
            )
    if mine is None:
        return
    parallel = vllm_config.parallel_config
    ranks, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    wrong = [] if len(reports) == ranks * stages else [f"{len(reports)} ranks reported"]
    for site in mine["sites"]:
        if (count := sum(site in one["sites"] for one in reports)) != ranks:
            wrong.append(f"{site} is edited by {count} ranks of {ranks}")
    for number, one in enumerate(reports):
        if one.get("digest") != mine["digest"]:
            wrong.append(f"rank {number} has bundle {one.get('digest')}")
        if one.get("kernel") != reports[0].get("kernel"):
            wrong.append(f"rank {number} edits by another kernel than rank 0")
        if not one["proven"]:
            wrong.append(f"nothing proves that rank {number} edits")
    if wrong:
        raise CanaryError(
            f"of {ranks * stages} ranks of an engine, {'; '.join(wrong)}; nothing is "
            "served. Is the same vllm-sauce installed wherever they run?"
        )
