# SPDX-License-Identifier: Apache-2.0
"""What a measurement found: tables, one page, and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce import __version__
from vllm_sauce.errors import LearnError
from vllm_sauce.files import write_whole
from vllm_sauce.measuring.scores import Figures, Results, means
from vllm_sauce.measuring.settings import BAN, BOTH, OURS, PLAIN, PROMPT
from vllm_sauce.pages import pages_of

if TYPE_CHECKING:
    from rich.table import Table

TEMPLATE = Path(__file__).parent / "pages/eval.html.j2"
TITLES = {
    PLAIN: "unedited",
    OURS: "bundle",
    PROMPT: "prompt",
    BAN: "ban",
    BOTH: "bundle and ban",
}


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
    yield _grid(
        f"one concept forgotten at a time, mean of {count} [95 % over concepts]",
        (
            (
                TITLES.get(of, of),
                {**shown, "false": found.false[of], "worst other": found.worst[of]},
            )
            for of, shown in found.means.items()
        ),
    )
    n = next(iter(found.instead[PLAIN].values())).n
    yield _grid(
        f"what is said where it is to be named, of {n} answers; false: descriptions",
        (
            (_title(of), {**shares, "false": found.false[of]})
            for of, shares in found.instead.items()
        ),
    )
    if any(figure.n for shares in found.away.values() for figure in shares.values()):
        yield _grid(
            "what gives a concept away that is not said",
            ((TITLES.get(of, of), shares) for of, shares in found.away.items()),
        )
    if found.together:
        yield _grid("several at once", found.together.items())
    for method, concepts in found.alone.items():
        if method != PLAIN:
            title = f"each concept: {TITLES.get(method, method)}"
            yield _grid(title, _with_means(concepts, found.domains), "concept")


def _title(of: str) -> str:
    method, comma, domain = of.partition(", ")
    return f"{TITLES.get(method, method)}{comma}{domain}"


def _with_means(
    concepts: Mapping[str, Figures], domains: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Figures]]:
    """Yield each domain's concepts and their mean, and last the mean of all."""
    for domain, names in domains.items():
        each = [concepts[name] for name in names]
        yield from zip(names, each, strict=True)
        yield f"{domain}, mean of {len(each)}", means(each)
    if len(domains) > 1:
        yield f"all, mean of {len(concepts)}", means(list(concepts.values()))


def _grid(title: str, rows: Iterable[tuple[str, Figures]], of: str = "") -> Grid:
    """Return a table of figures, a row for each name."""
    named = list(rows)
    lines = [(name, *map(str, figures.values())) for name, figures in named]
    return Grid(title, (of, *named[0][1]), tuple(lines))


def write(folder: Path, found: Results, about: Sequence[tuple[str, str]]) -> None:
    """Write results.json, results.md and results.html.

    ``about``: what was measured, as names and values.

    Raises: LearnError, for example if the disk is full
    """
    tables = list(grids(found))
    numbers = json.dumps(asdict(found), indent=1)
    head = "".join(f"- {name}: {value}\n" for name, value in about)
    text = head + "\n" + "\n".join(table.markdown() for table in tables)
    page = pages_of(TEMPLATE.parent).get_template(TEMPLATE.name)
    html = page.render(tables=tables, about=about, version=__version__)
    for name, content in (("json", numbers), ("md", text), ("html", html)):
        write_whole(folder / f"results.{name}", content.encode(), LearnError)
