# SPDX-License-Identifier: Apache-2.0
"""``scripts/test`` with a Python that only takes notes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.places import ROOT

PYTHON = """#!/bin/bash
{ printf '%s|' "runner=${SAUCE_TEST_RUNNER:-v1}" "$@"; echo; } >> notes
"""


def runs(folder: Path, *args: str) -> list[list[str]]:
    """Return the runner and the arguments of each pytest that a command starts."""
    (folder / "scripts").mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/test", folder / "scripts")
    scripts = {"scripts/setup": "#!/bin/bash\n", ".venv/bin/python": PYTHON}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    subprocess.run([folder / "scripts/test", *args], check=True)
    lines = (folder / "notes").read_text().splitlines()
    return [line.split("|")[:-1] for line in lines]


def marks(run: list[str]) -> str:
    """Return the marks of a run, of which pytest reads the last."""
    assert run.count("-m") == 2, run  # python -m pytest -m ...
    return run[len(run) - run[::-1].index("-m")]


def test_everything_and_the_engines_again(tmp_path: Path) -> None:
    first, second = runs(tmp_path, "-x")
    assert (first[0], second[0]) == ("runner=v1", "runner=v2")
    assert "-x" in first
    assert marks(first) == marks(second) == "not gpu"
    again = [word for word in second if word.startswith("tests/")]
    assert again and all((ROOT / name).exists() for name in again)


@pytest.mark.parametrize(
    "given", [("-m", "not engine"), ("-mnot engine",), ("-m=not engine",)]
)
def test_marks_are_joined_and_run_once(tmp_path: Path, given: tuple[str, ...]) -> None:
    """A second ``-m`` would have run the GPU's tests."""
    (run,) = runs(tmp_path, *given, "tests/sae")
    assert run[0] == "runner=v1" and "tests/sae" in run
    assert marks(run) == "not gpu and (not engine)"
