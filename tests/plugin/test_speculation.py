# SPDX-License-Identifier: Apache-2.0
"""Drafted tokens under masks: nothing is said that the edited model does not say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.plugin.speculating import ASKS, CONFIGS
from tests.plugin.support import Reply

pytestmark = pytest.mark.engine


def answers(method: str, bundle_dir: Path, folder: Path) -> dict[str, Any]:
    """Return what a process of its own answers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugin.speculating", method, bundle_dir, folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    for line in done.stdout.splitlines():
        if line.startswith("ANSWERS "):
            found: dict[str, Any] = json.loads(line.removeprefix("ANSWERS "))
            return found
    if "Model Runner V2 does not yet support" in done.stderr:
        pytest.skip(f"this vLLM's runner V2 cannot draft by {method}")
    pytest.fail(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


@pytest.mark.parametrize("method", CONFIGS)
def test_each_answer_is_the_edited_models(
    method: str, bundle_dir: Path, reference: Any, tmp_path: Path
) -> None:
    """Tokens and log-probabilities are transformers' with the edit; drafts are used."""
    found = answers(method, bundle_dir, tmp_path)
    for ask, pair in zip(ASKS, found["replies"], strict=True):
        want = reference.reply(ask)
        for tokens, logprobs in pair:
            steps = tuple(tuple(map(tuple, step)) for step in logprobs)
            assert Reply(tuple(tokens), steps, 0).close(want, 1e-3), ask
    counts = found["counts"]
    assert counts["accepted_tokens"] > 0, counts
    assert counts["draft_tokens"] > counts["accepted_tokens"], counts
