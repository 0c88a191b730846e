# SPDX-License-Identifier: Apache-2.0
"""``sauce harvest``: a model's activations at its sites, into shards on the disk."""

from __future__ import annotations

import sys
from dataclasses import asdict

from vllm_sauce.learning.harvest.settings import HarvestRequest
from vllm_sauce.scale.cluster import actors_wanted


def harvest(request: HarvestRequest) -> int:
    """Take activations with vLLM; run it again to go on where it was stopped."""
    from rich.console import Console

    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.data.sample_sources import find_samples
    from vllm_sauce.data.samples import distinct
    from vllm_sauce.learning.harvest.actors import harvest_anywhere

    where = actors_wanted(request.resources)
    samples, repeated = distinct(find_samples(**asdict(request.shown)))
    with progress_bar("samples") as progress:
        report = harvest_anywhere(request, samples, where, progress)
    Console().print(report.as_table(request.out, len(repeated)))
    if report.failed:
        failures = f"{request.out}/failures.jsonl"
        sys.stderr.write(f"{len(report.failed)} samples failed: {failures}\n")
    return int(bool(report.failed))
