# SPDX-License-Identifier: Apache-2.0
"""``sauce batch``: answer a file of prompts, each with its own mask."""

from __future__ import annotations

import sys
from dataclasses import replace

from vllm_sauce.batch.settings import BatchRequest
from vllm_sauce.scale.cluster import actors_wanted


def batch(request: BatchRequest) -> int:
    """Answer every row of IN, forgetting per row; an interrupted run goes on.

    Exit status: 0 all rows answered, 1 some failed (see OUT.failures.jsonl), 2 the run
    could not go on.
    """
    from vllm_sauce.batch import job, run
    from vllm_sauce.cli.bars import row_bar

    try:
        with row_bar() as progress:
            made = job.make_job(request)
            placed = replace(request, resources=actors_wanted(request.resources))
            done = run.run(made, placed, progress)
    except KeyboardInterrupt:
        sys.stderr.write("sauce batch: run the same command to go on\n")
        raise
    sys.stdout.write(f"{done.line()}\n")
    return int(bool(done.failed))
