# SPDX-License-Identifier: Apache-2.0
"""``sauce demo`` end to end, and its verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import starts_engine
from vllm_sauce.errors import ConfigError
from vllm_sauce.playground.demo import Case, Result, as_html, find_tiny, read_cases

SAUCE = Path(sys.executable).with_name("sauce")


@pytest.fixture(scope="module")
@starts_engine
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo once; returns its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [str(SAUCE), "demo", "--json", "answers.json"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_answers_change_and_stay_as_they_must(ran: tuple[Path, str]) -> None:
    """The exit status says so; the data must say the same."""
    rows = json.loads((ran[0] / "answers.json").read_text())
    assert {tuple(sorted(row)) for row in rows} == {
        ("after", "before", "forget", "must_change", "picture", "question")
    }
    for row in rows:
        assert (row["before"] != row["after"]) == row["must_change"], row
    assert {len(row["forget"]) for row in rows} == {0, 1, 8}
    assert any(row["must_change"] for row in rows)
    assert any(row["forget"] and not row["must_change"] for row in rows)


def test_forgotten_names_are_gone(ran: tuple[Path, str]) -> None:
    """An answer that had to change no longer names what was forgotten."""
    for row in json.loads((ran[0] / "answers.json").read_text()):
        if row["must_change"]:
            named = [name for name in row["forget"] if name in row["before"].split()]
            assert not set(named) & set(row["after"].split()), row


def test_table_and_page(ran: tuple[Path, str]) -> None:
    """The terminal has a table, the page has the pictures in it."""
    folder, printed = ran
    assert "before" in printed
    page = (folder / "demo.html").read_text()
    rows = json.loads((folder / "answers.json").read_text())
    assert page.count("data:image/png;base64,") == len(rows)
    assert page.count('<div class="case">') == len(rows)


def case(must_change: bool) -> Case:
    """Return a case about any picture of the demo."""
    return Case(read_cases(find_tiny())[0].picture, "what?", ("dog",), must_change)


@pytest.mark.parametrize(
    ("before", "after", "must_change", "right"),
    [
        ("a", "a", True, False),
        ("a", "b", True, True),
        ("a", "b", False, False),
        ("a dog", "the dog", True, False),
    ],
)
def test_verdict(before: str, after: str, must_change: bool, right: bool) -> None:
    """An answer is right just if it changed when it had to; the page shows it."""
    answer = Result(case(must_change), before, after)
    assert answer.right is right
    assert ("WRONG" in as_html(find_tiny(), [answer])) is not right


def test_damaged_cases(tmp_path: Path) -> None:
    """A broken file of cases is an error that names it."""
    (tmp_path / "demo.json").write_text('[{"picture": "a.png"}]')
    with pytest.raises(ConfigError, match="damaged"):
        read_cases(tmp_path)
