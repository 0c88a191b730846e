# SPDX-License-Identifier: Apache-2.0
"""A process that registers the plugin ends with the one it works for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.places import ROOT

WATCHED = "import time; from vllm_sauce.scale import orphans; orphans.install(); "
FOREVER = WATCHED + "print('up', flush=True); time.sleep(600)"


def start(code: str, parent: str) -> subprocess.Popen[str]:
    """Start Python in a process that watches another."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "SAUCE_PARENT": parent},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_it_ends_when_its_parent_is_killed() -> None:
    other = subprocess.Popen(["sleep", "600"])
    child = start(FOREVER, str(other.pid))
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    other.kill()
    other.wait()
    assert child.wait(30) == 1


def test_it_ends_when_its_parent_is_dead_already() -> None:
    other = subprocess.Popen(["true"])
    other.wait()
    child = start(FOREVER, str(other.pid))
    assert child.stdout is not None
    assert child.stdout.read() == ""
    assert child.wait(30) == 1


@pytest.mark.parametrize("parent", ["", "none", "-1"])
def test_without_a_parent_nothing_is_watched(parent: str) -> None:
    child = start(WATCHED + "print('end')", parent)
    assert child.communicate(timeout=30)[0] == "end\n"
    assert child.returncode == 0


def test_a_process_does_not_watch_itself() -> None:
    code = "from vllm_sauce.scale import orphans; orphans.tie_children(); "
    child = start(code + WATCHED + "print('end')", "")
    assert child.communicate(timeout=30)[0] == "end\n"
