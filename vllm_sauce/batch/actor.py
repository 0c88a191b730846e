# SPDX-License-Identifier: Apache-2.0
"""What holds an engine, here or in Ray's processes: a chunk in, a part's bytes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vllm_sauce.batch.chunks import Chunk, read_chunk
from vllm_sauce.batch.engine import failed
from vllm_sauce.batch.job import Job
from vllm_sauce.batch.output import Answer, encode_part
from vllm_sauce.batch.rows import Question, read_row, row_id
from vllm_sauce.errors import RequestError


class Answerer(Protocol):
    """Turns questions into an answer or a failure each."""

    def answer(self, questions: list[Question]) -> list[Answer]:
        """Return them in any order."""


class ChunkActor:
    """Holds an engine; called with a chunk from several threads at once."""

    def __init__(self, job: Job, start: Callable[[Job], Answerer]) -> None:
        self.job = job
        self.answerer: Answerer = start(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a chunk."""
        chunk = Chunk(**row)
        answers = answer_chunk(self.job, self.answerer, chunk)
        return {
            "first": chunk.first,
            "part": encode_part(answers),
            "failed": sum(answer.error is not None for answer in answers),
        }


def answer_chunk(job: Job, answerer: Answerer, chunk: Chunk) -> list[Answer]:
    """Return an answer or a failure for every row of a chunk."""
    answers: list[Answer] = []
    questions: list[Question] = []
    for row in read_chunk(chunk):
        if row.data is None:
            answers.append(failed(row.number, None, row.error or ValueError("no row")))
            continue
        try:
            questions.append(
                read_row(row.number, row.data, job.defaults, Path(job.folder))
            )
        except RequestError as error:
            answers.append(failed(row.number, row_id(row.data), error))
    return answers + answerer.answer(questions)
