# SPDX-License-Identifier: Apache-2.0
"""What all ranks of an engine must have reported before anything is served."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_sauce.errors import CanaryError, ConfigError
from vllm_sauce.plugin.startup import settings

CALL = "sauce_report"
"""The worker's method, which engine cores and API processes call."""
LOOK = "sauce_look_at_weights"
"""The one that takes its proof back where weights are others than at the last look."""

Report = Mapping[str, Any]


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
        if one.get("weights") != reports[0].get("weights"):
            wrong.append(f"rank {number} has other weights than rank 0")
        if not one["proven"]:
            wrong.append(f"nothing proves that rank {number} edits")
    if wrong:
        raise CanaryError(
            f"of {ranks * stages} ranks of an engine, {'; '.join(wrong)}; nothing is "
            "served. Is the same vllm-sauce installed wherever they run?"
        )
