# SPDX-License-Identifier: Apache-2.0
"""What was said to each case; answers.jsonl keeps a line for each and only grows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from vllm_sauce.errors import LearnError
from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.measuring.cases import Case


class Kept(NamedTuple):
    """What is kept of an answer."""

    answer: Answer
    leak: float | None = None
    """Log-probability that the forgotten concept is named, where that was read."""


@dataclass(frozen=True)
class Answered:
    """What was said to one case, and to its question unedited.

    Judged once: intervals look at every answer some hundred times.
    """

    case: Case
    answer: Answer
    plain: Answer
    leak: float | None = None
    """Log-probability that the forgotten concept is named, where that was read."""

    @cached_property
    def right(self) -> bool:
        """Whether it is what its question wants."""
        return self.case.question.right(self.answer.text, self.plain.text)

    @cached_property
    def malformed(self) -> bool:
        """Whether it is spoilt."""
        return self.answer.malformed(self.plain)

    @property
    def good(self) -> bool:
        """Whether it is right and not spoilt."""
        return self.right and not self.malformed


@dataclass(slots=True)
class AnswerFile:
    """The answers of a measurement that may have been cut off."""

    path: Path

    def read(self) -> dict[str, Kept]:
        """Return what is there, by the cases' keys.

        A last line without its end was cut off: it is asked again.

        Raises: LearnError
        """
        if not self.path.exists():
            return {}
        text = self.path.read_text()
        if not text.endswith("\n"):
            whole = text[: text.rfind("\n") + 1]
            self.path.write_text(whole)
            text = whole
        found = {}
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entry = json.loads(line)
                answer = Answer(entry["text"], finished=entry["finished"])
                found[entry["key"]] = Kept(answer, entry.get("leak"))
            except (ValueError, KeyError, TypeError) as error:
                raise LearnError(
                    f"{self.path}, line {number} is no answer; remove the line to have "
                    "it asked again"
                ) from error
        return found

    def add(self, found: Iterable[tuple[str, Case, Kept]]) -> None:
        """Append answers under their keys.

        Raises: LearnError, for example if the disk is full
        """
        lines = [json.dumps(_line(*one)) + "\n" for one in found]
        try:
            with self.path.open("a") as file:
                file.write("".join(lines))
        except OSError as error:
            raise LearnError(f"cannot write {self.path}: {error}") from error


def _line(key: str, case: Case, kept: Kept) -> Mapping[str, object]:
    """Return all that a reader wants who has this file alone."""
    question, answer = case.question, kept.answer
    told = {} if kept.leak is None else {"leak": round(kept.leak, 3)}
    return {
        "key": key,
        "method": case.method,
        "forget": case.forget,
        "group": case.group,
        "about": question.about,
        "shown": question.shown,
        "kind": question.kind.value,
        "prompt": question.prompt,
        "picture": question.picture.name if question.picture else None,
        "text": answer.text,
        "finished": answer.finished,
        **told,
    }
