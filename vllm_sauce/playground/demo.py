# SPDX-License-Identifier: Apache-2.0
"""The demo: one mixed batch on sauce-tiny, before and after forgetting."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.data.samples import PictureFile
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.evaluation.questions import Question
from vllm_sauce.pages import pages_of

if TYPE_CHECKING:
    from rich.table import Table

MAX_TOKENS = 12


@dataclass(frozen=True)
class Case:
    """One question about one picture."""

    picture: str
    """File name in the pictures' folder."""
    question: str
    forget: tuple[str, ...]
    """What the request forgets; empty for a request without a mask."""
    must_change: bool
    """Whether forgetting must change the answer, or must leave it."""


@dataclass(frozen=True)
class Result:
    """A case and the model's answers without and with its mask."""

    case: Case
    before: str
    after: str

    @property
    def right(self) -> bool:
        """Whether the answer stayed, or changed and names nothing forgotten."""
        if not self.case.must_change:
            return self.before == self.after
        said = set(re.findall(r"\w+", self.after.lower()))
        return self.before != self.after and not said & set(self.case.forget)


def find_tiny() -> Path:
    """Return the folder of sauce-tiny in this checkout.

    Raises: ConfigError outside a checkout of the project.
    """
    folder = Path(__file__).resolve().parents[2] / "examples" / "tiny"
    missing = [
        name
        for name in ("model", "bundle", "pictures", "demo.json")
        if not (folder / name).exists()
    ]
    if missing:
        raise ConfigError(
            f"the demo needs the project's checkout with {folder}, which lacks "
            f"{', '.join(missing)}; clone the repository and run scripts/demo there"
        )
    return folder


def read_cases(folder: Path) -> list[Case]:
    """Read the demo's questions.

    Raises: ConfigError.
    """
    try:
        rows = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        return [Case(**{**row, "forget": tuple(row["forget"])}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / 'demo.json'} is damaged: {error!r}") from error


def ask(folder: Path, cases: Sequence[Case]) -> list[Result]:
    """Ask all questions in one batch: each without a mask and with its own."""
    # The demo is one process to the end: no second one to start and stop.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # A newcomer came for the table, not for the engine's hundred lines.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    asks = [
        Ask(
            question=Question(
                prompt=case.question,
                picture=PictureFile(folder / "pictures" / case.picture),
            ),
            forget=names,
            max_tokens=MAX_TOKENS,
        )
        for case in cases
        for names in ((), case.forget)
    ]
    arguments = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 64}
    with EngineAsker.open(
        folder / "model", folder / "bundle", engine_args=arguments
    ) as asker:
        texts = [answer.text for answer in asker.ask(asks)]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [Result(case, *pair) for case, pair in zip(cases, pairs, strict=True)]


def as_json(answers: Sequence[Result]) -> str:
    """Return the answers as a JSON list of objects."""
    return json.dumps(
        [
            {**asdict(answer.case), "before": answer.before, "after": answer.after}
            for answer in answers
        ],
        indent=1,
    )


def as_table(answers: Sequence[Result]) -> Table:
    """Return the answers as a table for the terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = "One batch, many masks: what each request may still know"
    table = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("picture", "question", "forgets", "before", "after"):
        table.add_column(heading)
    # On a narrow terminal the question wraps; the verdict never goes missing.
    table.add_column("must", no_wrap=True, min_width=len("change WRONG"))
    for i, answer in enumerate(answers):
        case = answer.case
        first = i == 0 or answers[i - 1].case.picture != case.picture
        if first and i:
            table.add_section()
        table.add_row(
            case.picture if first else "",
            case.question,
            _named(case.forget),
            answer.before,
            f"[bold]{answer.after}[/]"
            if answer.before != answer.after
            else answer.after,
            ("change " if case.must_change else "stay ")
            + ("[green]ok[/]" if answer.right else "[red]WRONG[/]"),
        )
    return table


def _named(forget: Sequence[str]) -> str:
    if len(forget) > 3:
        return f"{forget[0]} and {len(forget) - 1} others"
    return ", ".join(forget) or "nothing"


def as_html(folder: Path, answers: Sequence[Result]) -> str:
    """Return a page with each picture beside its answers; needs no other file."""

    def picture(name: str) -> str:
        return base64.b64encode((folder / "pictures" / name).read_bytes()).decode()

    pages = pages_of(Path(__file__).parent / "pages")
    page = pages.get_template("demo.html.j2")
    return page.render(answers=answers, picture=picture)
