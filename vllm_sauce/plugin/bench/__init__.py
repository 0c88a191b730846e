# SPDX-License-Identifier: Apache-2.0
"""``--sauce-bench-forget``: vLLM's own benchmarks ask to forget, as clients would."""

from __future__ import annotations

import sys

from vllm_sauce.plugin.bench import client, engine
from vllm_sauce.plugin.compat import seam_check


def install() -> None:
    """Add the flag to the benchmark that is the job, if any: no other is imported."""
    if sys.argv[1:2] != ["bench"] or len(sys.argv) < 3:
        return
    command = sys.argv[2]
    if command == "serve":
        seam_check.check("bench serve")
        client.install()
    elif command in engine.COMMANDS:
        seam_check.check(f"bench {command}")
        engine.install(command)
