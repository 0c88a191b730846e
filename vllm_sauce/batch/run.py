# SPDX-License-Identifier: Apache-2.0
"""A run from the input to the output; what is finished survives whatever ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_sauce.batch.chunks import (
    SPOOL,
    Chunk,
    input_sha256,
    is_parquet,
    split_lines,
    split_parquet,
)
from vllm_sauce.batch.engine import ChunkActor, Engine, start_engine
from vllm_sauce.batch.job import Job, identity
from vllm_sauce.batch.output import Parts, writing
from vllm_sauce.batch.rows import Row
from vllm_sauce.batch.settings import BatchRequest
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import check_at_least
from vllm_sauce.scale.cluster import Resources, connected, results_here, results_of

SEQS_AT_ONCE = {False: 256, True: 1024}
"""vLLM's default ``max_num_seqs`` without and with a large GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did."""

    rows: int
    failed: int
    resumed: int
    """Rows that an earlier, interrupted run had done."""

    out: Path
    failures: Path

    def line(self) -> str:
        """Say it in a line."""
        told = f"{self.rows - self.failed} of {self.rows} rows answered: {self.out}"
        if self.resumed:
            told += f" ({self.resumed} rows by an earlier run)"
        return told + (f"; {self.failed} failed: {self.failures}" * bool(self.failed))


def run(
    job: Job,
    request: BatchRequest,
    progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
    start: Callable[[Job], Engine] = start_engine,
) -> Summary:
    """Answer every row of the input, going on where an earlier run was interrupted.

    Ray's actors answer if the request has resources for them, this process otherwise.
    ``progress``: told how many rows are done, of how many, and how many failed now.

    Raises: SauceError
    """
    source, out = request.source, request.out
    is_parquet(source)  # Or neither form: told before anything is written.
    check_at_least(request, 1, "rows_per_part")
    if out.suffix != ".parquet":
        raise ConfigError(f"the output must be a .parquet file, got {out.name!r}")
    if source.resolve() == out.resolve():
        raise ConfigError("the output would replace the input; give another name")
    parts = Parts(out)
    of = identity(job, input_sha256(source), request.rows_per_part)
    with parts.opened(of, overwrite=request.overwrite):
        chunks = _chunks(source, request.rows_per_part, parts.folder, job)
        finished = parts.finished(chunks)
        left = {chunk.first: chunk for chunk in chunks if chunk.first not in finished}
        rows = sum(chunk.rows for chunk in chunks)
        done = resumed = rows - sum(chunk.rows for chunk in left.values())
        wrong = 0
        progress(done, rows, wrong)
        for part in _results(job, start, list(left.values()), request.resources):
            first = part["first"]
            # A chunk that was begun anew may be finished twice.
            if first not in finished:
                finished[first] = parts.add(first, part["part"])
                done += left[first].rows
                wrong += part["failed"]
                progress(done, rows, wrong)
        failed = parts.merge(finished, chunks)
        parts.remove()
    return Summary(
        rows=rows, failed=failed, resumed=resumed, out=out, failures=parts.failures
    )


def _results(
    job: Job,
    start: Callable[[Job], Engine],
    chunks: Sequence[Chunk],
    resources: Resources | None,
) -> Iterator[dict[str, Any]]:
    """Yield what each chunk came to, from here or from Ray's actors."""
    if not chunks:
        return
    rows = [asdict(chunk) for chunk in chunks]
    most = max(chunk.rows for chunk in chunks)
    if resources is None:
        import torch

        at_once = chunks_at_once(job, most, gpu=torch.cuda.is_available())
        yield from results_here(ChunkActor(job, start), rows, at_once)
        return
    with connected(resources) as placed:
        at_once = chunks_at_once(job, most, gpu=bool(placed.gpus_per_actor))
        yield from results_of(ChunkActor, (job, start), rows, placed, at_once)


def chunks_at_once(job: Job, rows_per_chunk: int, *, gpu: bool) -> int:
    """Return how many chunks an actor holds so that its engine never waits for one.

    Twice what the engine runs at once, and a chunk that is being read.
    """
    seqs = job.engine_args.get("max_num_seqs")
    if not isinstance(seqs, int) or seqs < 1:
        seqs = SEQS_AT_ONCE[gpu]
    return 1 + -(-2 * seqs // rows_per_chunk)


def _chunks(source: Path, rows: int, folder: Path, job: Job) -> list[Chunk]:
    if not is_parquet(source):
        return split_lines(source, rows)
    column = job.defaults.forget_column
    columns = ({*Row.model_fields} - {"forget"}) | {column}
    with writing(folder / SPOOL):
        return split_parquet(source, rows, folder / SPOOL, columns)
