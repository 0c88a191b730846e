# SPDX-License-Identifier: Apache-2.0
"""Each example runs as its first lines say, on the shipped model and bundle.

``serve_and_ask.py`` is asked of the server of ``tests/plugin/test_api_servers.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

EXAMPLES = ROOT / "examples"
TINY = EXAMPLES / "tiny"


def run(*command: str) -> str:
    """Run an example in a fresh interpreter and return what it prints."""
    environ = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_stay_short(path: Path) -> None:
    """Under sixty lines of code: an example shows one thing."""
    lines = path.read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith("#")]
    assert len(code) < 60


@pytest.mark.engine
def test_offline() -> None:
    """The dog is named, and with dog forgotten it is not."""
    lines = run("examples/offline.py").splitlines()
    (before,) = [line for line in lines if line.startswith("before:")]
    (after,) = [line for line in lines if line.startswith("after:")]
    assert "dog" in before
    assert "dog" not in after


@pytest.mark.engine
def test_many_masks() -> None:
    """Sixteen masks in a batch; most of what is forgotten is not mentioned."""
    lines = [
        line for line in run("examples/many_masks.py").splitlines() if " | " in line
    ]
    assert len(lines) == 16
    forgotten = 0
    for line in lines:
        _, forgets, answer = line.split(" | ")
        forgotten += forgets.removeprefix("forgets ") not in answer
    assert forgotten >= 12
