# SPDX-License-Identifier: Apache-2.0
"""``sauce harvest``: a model's activations at its sites, into shards on the disk."""

from __future__ import annotations

import sys
from dataclasses import asdict

from vllm_sauce.learning.harvest.settings import HarvestOptions
from vllm_sauce.scale.cluster import actors_wanted


def harvest(options: HarvestOptions) -> int:
    """Take activations with vLLM; run it again to go on where it was stopped."""
    from rich.console import Console

    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.data.sample_sources import find_samples
    from vllm_sauce.data.samples import distinct
    from vllm_sauce.learning.harvest.actors import harvest_anywhere
    from vllm_sauce.learning.harvest.engine import HarvestRequest

    where = actors_wanted(options.resources)
    samples, repeated = distinct(find_samples(**asdict(options.shown)))
    request = HarvestRequest(
        **asdict(options.harvest),
        model=options.model,
        sites=options.sites,
        samples=tuple(samples),
        out=options.out,
        engine_args=options.engine_args,
    )
    with progress_bar("samples") as progress:
        report = harvest_anywhere(request, where, progress)
    Console().print(report.as_table(options.out, len(repeated)))
    if report.failed:
        failures = f"{options.out}/failures.jsonl"
        sys.stderr.write(f"{len(report.failed)} samples failed: {failures}\n")
    return int(bool(report.failed))
