# SPDX-License-Identifier: Apache-2.0
"""What a measurement found: tables, one page, and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce import __version__
from vllm_sauce.errors import LearnError
from vllm_sauce.files import write_whole
from vllm_sauce.measuring.scores import SCORES, Figures, Results
from vllm_sauce.measuring.settings import BAN, OURS, PLAIN, PROMPT

if TYPE_CHECKING:
    from rich.table import Table

TEMPLATE = Path(__file__).parent / "pages/eval.html.j2"
TITLES = {PLAIN: "unedited", OURS: "bundle", PROMPT: "prompt", BAN: "ban"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_table(self) -> Table:
        """Return it for a terminal."""
        from rich.table import Table

        shown = Table(*self.head, title=self.title)
        for row in self.rows:
            # Intervals stand below: a terminal has 80 columns.
            shown.add_row(*(cell.replace(" [", "\n[") for cell in row))
        return shown

    def markdown(self) -> str:
        """Return it for a paper's draft or a README."""
        lines = [self.head, ("---",) + ("---:",) * (len(self.head) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}\n"


def grids(found: Results) -> Iterator[Grid]:
    """Yield the tables: means, what is said instead, sets, each concept."""
    count = len(found.alone[PLAIN])
    yield Grid(
        f"one concept forgotten at a time, mean of {count} [95 % over concepts]",
        ("", *SCORES, "false", "worst other"),
        tuple(
            (
                TITLES.get(method, method),
                *(str(figures[name]) for name in SCORES),
                str(found.false[method]),
                str(found.worst[method]),
            )
            for method, figures in found.means.items()
        ),
    )
    kinds = next(iter(found.instead.values()))
    n = next(iter(kinds.values())).n
    yield Grid(
        f"what is said where it is to be named, of {n} answers; false: descriptions",
        ("", *kinds, "false"),
        tuple(
            (
                _title(of),
                *(str(share) for share in shares.values()),
                str(found.false[of]),
            )
            for of, shares in found.instead.items()
        ),
    )
    if any(figure.n for shares in found.away.values() for figure in shares.values()):
        titles = next(iter(found.away.values()))
        yield Grid(
            "what gives a concept away that is not said",
            ("", *titles),
            tuple(
                (TITLES.get(method, method), *(str(one) for one in shares.values()))
                for method, shares in found.away.items()
            ),
        )
    if found.together:
        yield _sets(found.together)
    for method, concepts in found.alone.items():
        if method != PLAIN:
            yield Grid(
                f"each concept: {TITLES.get(method, method)}",
                ("concept", *SCORES),
                tuple(
                    (name, *(str(figures[score]) for score in SCORES))
                    for name, figures in concepts.items()
                ),
            )


def _title(of: str) -> str:
    method, comma, domain = of.partition(", ")
    return f"{TITLES.get(method, method)}{comma}{domain}"


def _sets(together: Mapping[str, Figures]) -> Grid:
    first = next(iter(together.values()))
    rows = [
        (group, *(str(figure) for figure in figures.values()))
        for group, figures in together.items()
    ]
    return Grid("several at once", ("", *first), tuple(rows))


def write(folder: Path, found: Results, about: Sequence[tuple[str, str]]) -> None:
    """Write results.json, results.md and results.html.

    ``about``: what was measured, as names and values.

    Raises: LearnError, for example if the disk is full
    """
    from jinja2 import Environment, FileSystemLoader

    tables = list(grids(found))
    numbers = json.dumps(asdict(found), indent=1)
    head = "".join(f"- {name}: {value}\n" for name, value in about)
    text = head + "\n" + "\n".join(table.markdown() for table in tables)
    loader = FileSystemLoader(TEMPLATE.parent)
    pages = Environment(loader=loader, autoescape=True)
    page = pages.get_template(TEMPLATE.name).render(
        tables=tables, about=about, version=__version__
    )
    for name, content in (("json", numbers), ("md", text), ("html", page)):
        write_whole(folder / f"results.{name}", content.encode(), LearnError)
