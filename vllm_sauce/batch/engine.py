# SPDX-License-Identifier: Apache-2.0
"""One vLLM engine that is never idle between chunks: threads hand it their rows.

It is held here or in Ray's processes: a chunk in, a part's bytes out.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_sauce.batch.chunks import Chunk, read_chunk
from vllm_sauce.batch.job import Job
from vllm_sauce.batch.output import Answer, encode_part
from vllm_sauce.batch.rows import Question, read_row, row_id
from vllm_sauce.client import has_sauce_keys
from vllm_sauce.errors import (
    ActorDiedError,
    BundleMismatchError,
    InvalidRequestError,
    RequestError,
    SauceError,
)
from vllm_sauce.files import writable
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend.admission import admission_for
from vllm_sauce.scale import orphans
from vllm_sauce.unlearning.mask import Mask

_WAITING = 2
"""Rows given to the engine, in multiples of those it runs at once: one batch runs and
the next one's pictures are ready. Bounds the memory that pictures take."""


@dataclass(slots=True)
class _Waiting:
    """A row in the engine, and where its answer goes."""

    question: Question
    mask: Mask | None
    answer: Future[Answer] = field(default_factory=Future)


class Engine:
    """Answers questions of several threads at once; one thread of its own runs vLLM."""

    def __init__(self, llm: Any) -> None:
        vllm_config = llm.llm_engine.vllm_config
        self._llm = llm
        self._admission = admission_for(vllm_config)
        self._most = _WAITING * vllm_config.scheduler_config.max_num_seqs
        self._queue: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._inside: dict[str, _Waiting] = {}
        self._dead: ActorDiedError | None = None
        threading.Thread(target=self._run, name="sauce-engine", daemon=True).start()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return an answer or a failure for each question, in any order.

        Raises: ActorDiedError if vLLM died, before or meanwhile
        """
        refused: list[Answer] = []
        asked: list[_Waiting] = []
        for question in questions:
            try:
                asked.append(_Waiting(question, self._mask(question)))
            except SauceError as error:
                # Never seen by the engine: a mask nobody knows is no mask.
                refused.append(failed(question.number, question.id, error))
        for waiting in asked:
            self._queue.put(waiting)
        if asked and self._dead is not None:
            raise self._dead
        return refused + [waiting.answer.result() for waiting in asked]

    def _mask(self, question: Question) -> Mask | None:
        if self._admission is not None:
            return self._admission.resolve(question.extra_args)
        if has_sauce_keys(question.extra_args):
            raise InvalidRequestError(
                "the row forgets concepts, but the run has no bundle; give --bundle"
            )
        return None

    def _run(self) -> None:
        try:
            while True:
                self._feed()
                for output in self._llm.llm_engine.step():
                    if output.finished:
                        waiting = self._inside[output.request_id]
                        waiting.answer.set_result(self._answer(waiting, output))
                        del self._inside[output.request_id]
        except BaseException as error:
            self._die(error)

    def _die(self, error: BaseException) -> None:
        """Tell everyone who waits, and whoever comes later."""
        # Before the queue is emptied: who puts something in afterwards looks here.
        self._dead = ActorDiedError(f"the engine died: {type(error).__name__}: {error}")
        self._dead.__cause__ = error
        left = list(self._inside.values())
        with contextlib.suppress(queue.Empty):
            while True:
                left.append(self._queue.get_nowait())
        for waiting in left:
            waiting.answer.set_exception(self._dead)

    def _feed(self) -> None:
        """Give the engine what waits, up to the bound; wait if it has nothing to do."""
        while len(self._inside) < self._most:
            try:
                waiting = self._queue.get(block=not self._inside)
            except queue.Empty:
                return
            try:
                self._inside[self._enqueue(waiting.question)] = waiting
            except Exception as error:
                if compat.is_engine_dead(error):
                    # Back to those who wait: they must be told.
                    self._queue.put(waiting)
                    raise
                question = waiting.question
                waiting.answer.set_result(failed(question.number, question.id, error))

    def _enqueue(self, question: Question) -> str:
        from vllm import SamplingParams

        params = [SamplingParams(**question.sampling, extra_args=question.extra_args)]
        if question.messages is not None:
            ids = self._llm.enqueue_chat([question.messages], params, use_tqdm=False)
        else:
            ids = self._llm.enqueue([question.prompt], params, use_tqdm=False)
        return compat.external_request_id(ids[0])

    def _answer(self, waiting: _Waiting, output: Any) -> Answer:
        question, first = waiting.question, output.outputs[0]
        if first.finish_reason not in ("stop", "length"):
            error = InvalidRequestError(f"vLLM gave up on it: {first.finish_reason}")
            return failed(question.number, question.id, error)
        mask = waiting.mask
        return Answer(
            row=question.number,
            id=question.id,
            meta=question.meta,
            text=first.text,
            finish_reason=first.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            output_tokens=len(first.token_ids),
            forget=mask.concepts if mask else (),
            mask_id=mask.mask_id if mask else None,
            bundle=self._admission.bundle.digest if self._admission else None,
        )


def start_engine(job: Job) -> Engine:
    """Start vLLM with the job's model and bundle; it dies with this process.

    Raises: BundleMismatchError if the engine runs with another bundle, or none
    """
    orphans.tie_children()
    from vllm import LLM

    additional = {"sauce": job.sauce.to_mapping()} if job.sauce else None
    arguments: dict[str, Any] = {"disable_log_stats": True, **job.engine_args}
    llm = LLM(model=job.model, additional_config=additional, **arguments)
    # Written by the plugin when it placed its hooks: without it, nothing is edited.
    given = llm.llm_engine.vllm_config.additional_config
    section = given.get("sauce") if isinstance(given, dict) else None
    found = section.get("digest") if section else None
    if found != job.digest:
        raise BundleMismatchError(
            f"the engine runs with bundle {found}, wanted {job.digest}; is "
            "vllm-sauce left out of VLLM_PLUGINS, or the bundle another one here?"
        )
    return Engine(llm)


class ChunkActor:
    """Holds an engine; called with a chunk from several threads at once."""

    def __init__(self, job: Job, start: Callable[[Job], Engine]) -> None:
        self.job, self.engine = job, start(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a chunk."""
        chunk = Chunk(**row)
        answers = answer_chunk(self.job, self.engine, chunk)
        wrong = sum(answer.error is not None for answer in answers)
        return {"first": chunk.first, "part": encode_part(answers), "failed": wrong}


def answer_chunk(job: Job, engine: Engine, chunk: Chunk) -> list[Answer]:
    """Return an answer or a failure for every row of a chunk."""
    answers: list[Answer] = []
    questions: list[Question] = []
    for number, data in read_chunk(chunk):
        if isinstance(data, InvalidRequestError):
            answers.append(failed(number, None, data))
            continue
        try:
            question = read_row(number, data, job.defaults, Path(job.folder))
        except RequestError as error:
            answers.append(failed(number, row_id(data), error))
        else:
            questions.append(question)
    return answers + engine.answer(questions)


def failed(row: int, name: str | None, error: Exception) -> Answer:
    """Return the result of a row that got no answer."""
    # Another class of the same name makes vLLM answer 400: compat.as_client_error.
    message = writable(str(error))
    return Answer(row=row, id=name, error=type(error).__name__, message=message)
