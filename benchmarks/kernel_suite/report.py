# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown, so that one can be committed as it was printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Value = str | int | float | None


@dataclass
class Table:
    """One question's answer."""

    title: str
    note: str
    columns: list[str]
    """Names with their units; a row is a value for each."""
    rows: list[list[Value]] = field(default_factory=list)

    def add(self, *values: Value) -> None:
        """Append a row. Raises: ValueError unless it has a value a column"""
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} values for {len(self.columns)} columns")
        self.rows.append(list(values))

    def column(self, name: str) -> list[Value]:
        """Return a column's values."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def markdown(self) -> str:
        """Return heading, note and, if it has rows, table."""
        if not self.rows:
            return f"## {self.title}\n\n{self.note}"
        numeric = [any(_number(v) for v in self.column(c)) for c in self.columns]
        rule = ["---:" if right else "---" for right in numeric]
        cells = [self.columns, rule, *([text(v) for v in row] for row in self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([f"## {self.title}", "", self.note, "", *lines])

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return asdict(self)


def _number(value: Value) -> bool:
    return isinstance(value, int | float)


def text(value: Value) -> str:
    """Return a cell: three digits that count, and a dash for what was not measured."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def paragraph(*sentences: str) -> str:
    """Join a note's sentences, empty ones left out."""
    return " ".join(sentence for sentence in sentences if sentence)
