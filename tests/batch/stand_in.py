# SPDX-License-Identifier: Apache-2.0
"""An engine's stand-in for tests of what happens around it: it echoes questions."""

from __future__ import annotations

import os
import time

from vllm_sauce.batch.engine import failed
from vllm_sauce.batch.job import Job
from vllm_sauce.batch.output import Answer
from vllm_sauce.batch.rows import Defaults, Question
from vllm_sauce.errors import BundleMismatchError, InvalidRequestError

JOB = Job(model="m", sauce=None, digest=None, defaults=Defaults(), folder="/")


class Echo:
    """Answers a prompt with itself, slowly; a prompt "refuse" fails."""

    def answer(self, questions: list[Question]) -> list[Answer]:
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


class DiesAlways(Echo):
    """Ends its process at the first question, as an engine that dies does."""

    def answer(self, questions: list[Question]) -> list[Answer]:
        """Never return."""
        os._exit(1)


def start_dying(job: Job) -> Echo:
    """Take the place of ``start_engine``."""
    return DiesAlways()
