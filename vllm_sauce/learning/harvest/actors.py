# SPDX-License-Identifier: Apache-2.0
"""A harvest by several engines at once, on this machine or a cluster: Ray's actors.

Each actor holds an engine and writes its own shards into the one folder. What an actor
that died had done of its chunk is on the disk, and is not taken again.
"""

from __future__ import annotations

import json
import math
import pickle
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm_sauce.activations.shards import HarvestFile, read_index
from vllm_sauce.data.example_sources import TablePicture
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ActivationsError, SauceError
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.harvest.engine import HarvestEngine, harvest
from vllm_sauce.learning.harvest.folder import (
    HarvestFolder,
    HarvestReport,
    NumberedSample,
)
from vllm_sauce.learning.harvest.settings import HarvestRequest
from vllm_sauce.scale import orphans
from vllm_sauce.scale.cluster import Resources, connected, everywhere, results_of

SAMPLES_PER_CHUNK = 1024
"""At most; a chunk ends with a shard that may be small."""

CHUNKS_PER_ACTOR = 4
"""At least, where there are so many samples: the last chunks end together."""


def harvest_anywhere(
    request: HarvestRequest,
    samples: Sequence[Sample],
    resources: Resources | None,
    progress: Progress = lambda done, total: None,
) -> HarvestReport:
    """Do what ``harvest`` does, with an engine in each of Ray's actors.

    Without resources there is one engine, in this process.

    Raises: ActivationsError, BatchError, ConfigError
    """
    if resources is None:
        return harvest(request, samples, progress)
    request = replace(
        request, out=request.out.absolute(), model=everywhere(request.model)
    )
    folder = HarvestFolder.open(request, samples)

    def take(advance: Callable[[int], None]) -> dict[str, str]:
        failed: dict[str, str] = {}
        chunks = cut(folder.left, resources.actors)
        rows = [{"samples": pickle.dumps(chunk)} for chunk in chunks]
        with connected(resources) as placed:
            folder.begin()
            arguments = (request, folder.header)
            for result in results_of(HarvestActor, arguments, rows, placed):
                if result["error"]:
                    raise ActivationsError(result["error"])
                failed |= json.loads(result["failed"])
                advance(result["count"])
        return failed

    report = folder.fill(take, progress)
    wanted = folder.num_samples - len(report.failed)
    if report.num_samples != wanted:
        raise ActivationsError(
            f"{request.out} holds {report.num_samples} of {wanted} samples: does every "
            "machine see the folder under the same path? Run the same command to go on"
        )
    return report


class HarvestActor:
    """Holds an engine; called with a chunk of samples."""

    def __init__(self, request: HarvestRequest, header: HarvestFile) -> None:
        orphans.tie_children()
        # An actor that was given up may still write: no other has its name.
        self.writer = f"a{uuid.uuid4().hex[:12]}"
        self.request, self.header = request, header
        self.engine = HarvestEngine.open(request)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Harvest what the disk does not hold of a chunk."""
        # Written by the driver, as all that Ray itself passes on.
        samples: list[NumberedSample] = pickle.loads(row["samples"])
        failed: dict[str, str] = {}
        error = ""
        try:
            entries = read_index(self.request.out)
            done = {number for entry in entries for number in entry.samples}
            left = [sample for sample in samples if sample.number not in done]
            failed = self.engine.take(
                self.request, self.header, left, writer=self.writer
            )
        except SauceError as found:
            # Raised as it is by the process that has the user's attention.
            error = str(found)
        return {"count": len(samples), "failed": json.dumps(failed), "error": error}


def cut(
    samples: Sequence[NumberedSample], actors: int, most: int = SAMPLES_PER_CHUNK
) -> list[list[NumberedSample]]:
    """Return chunks; samples of one picture share one, so its patches are written once.

    A picture that more samples have than fit makes a larger chunk.
    """
    together: dict[str | int, list[NumberedSample]] = {}
    for sample in samples:
        together.setdefault(sample.picture or sample.number, []).append(
            _anywhere(sample)
        )
    size = min(most, math.ceil(len(samples) / (actors * CHUNKS_PER_ACTOR)))
    chunks: list[list[NumberedSample]] = []
    for group in together.values():
        if not chunks or len(chunks[-1]) + len(group) > size:
            chunks.append([])
        chunks[-1] += group
    return chunks


def _anywhere(given: NumberedSample) -> NumberedSample:
    """Return the sample with a path that holds in any process."""
    picture = given.sample.picture
    if not isinstance(picture, PictureFile | TablePicture):
        return given
    placed = replace(picture, path=picture.path.absolute())
    return replace(given, sample=replace(given.sample, picture=placed))
