# SPDX-License-Identifier: Apache-2.0
"""An engine's stand-in for tests of what happens around it: it echoes questions."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_sauce.batch.engine import Engine, failed
from vllm_sauce.batch.job import Job
from vllm_sauce.batch.output import Answer
from vllm_sauce.batch.rows import Question
from vllm_sauce.batch.settings import BatchRequest, Defaults
from vllm_sauce.errors import (
    ActorDiedError,
    BundleMismatchError,
    InvalidRequestError,
)

JOB = Job(model="m", sauce=None, digest=None, defaults=Defaults(), folder="/")


def request(source: Path, out: Path, **options: Any) -> BatchRequest:
    """Return what ``run`` is told; its parts have two rows unless told otherwise."""
    return BatchRequest(source, out, model="m", **{"rows_per_part": 2} | options)


class Echo(Engine):
    """Answers a prompt with itself, slowly; a prompt "refuse" fails."""

    def __init__(self) -> None:
        pass

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers backwards: an engine's order is any."""
        time.sleep(0.2)
        return [_answer(question) for question in reversed(questions)]


def _answer(question: Question) -> Answer:
    text = (question.prompt or {})["prompt"]
    if text == "refuse":
        return failed(question.number, question.id, InvalidRequestError("refused"))
    return Answer(row=question.number, id=question.id, text=f"echo {text}")


def start_echo(job: Job) -> Echo:
    """Take the place of ``start_engine``."""
    return Echo()


def start_never(job: Job) -> Echo:
    """Fail as an engine with a wrong bundle does."""
    raise BundleMismatchError("another bundle")


class Mortal(Echo):
    """Answers a few times; then what it holds is dead."""

    LIFE = 5

    def __init__(self) -> None:
        self.left = threading.Semaphore(self.LIFE)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers, or raise."""
        if not self.left.acquire(blocking=False):
            raise ActorDiedError("the engine died: out of memory")
        return super().answer(questions)


def start_mortal(job: Job) -> Echo:
    """Take the place of ``start_engine``."""
    return Mortal()


class DiesAlways(Echo):
    """Dies at the first question."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Never return."""
        raise ActorDiedError("the engine died: out of memory")


def start_dying(job: Job) -> Echo:
    """Take the place of ``start_engine``."""
    return DiesAlways()
