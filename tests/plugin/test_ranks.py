# SPDX-License-Identifier: Apache-2.0
"""An engine of several ranks: all edit, each what its stage holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.answering import ASKS, answers, apart
from tests.plugin.conftest import RUNNER
from tests.plugin.random_bundle import write_random_bundle
from tests.plugin.support import MODEL, ReferenceModel
from vllm_sauce.bundle import Bundle

pytestmark = pytest.mark.engine

LAYERS = "decoder.1", "decoder.2"
"""The last of the first stage of two, and the first of the second."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the vision site and of a layer on each stage."""
    path = tmp_path_factory.mktemp("ranks") / "bundle"
    return write_random_bundle(path, MODEL, layers=LAYERS)


def split(kind: str, sites: list[list[str]]) -> Any:
    """Name a way of having two ranks, and the sites of each."""
    return pytest.param(
        {f"{kind}_parallel_size": 2},
        sites,
        id=kind,
        marks=pytest.mark.feature(f"{kind} parallelism"),
    )


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        split("tensor", [[*LAYERS, "vision"]] * 2),
        split("pipeline", [["decoder.1", "vision"], ["decoder.2"]]),
    ],
)
def test_each_answer_is_the_edited_models(
    options: dict[str, int], sites: list[list[str]], bundle: Path
) -> None:
    """Each mask's answers are transformers' with its edits, cold and warm."""
    reference = ReferenceModel(MODEL, Bundle.load(bundle))
    # A few tokens: two ranks and another test share the cores.
    asks = [replace(ask, max_tokens=4) for ask in ASKS]
    found = answers(bundle, asks, **options)
    wanted = [reference.reply(ask) for ask in asks]
    for ask, pair, want in zip(asks, found.replies, wanted, strict=True):
        assert all(one.close(want, 1e-3) for one in pair), ask
    assert len({one.tokens for one in wanted}) > 4, "masks must change answers"
    assert [one["sites"] for one in found.reports] == sites
    assert all(one["proven"] for one in found.reports)


BROKEN = """
import sys
from pathlib import Path
from tests.plugin.conftest import engine
from tests.plugin.support import MODEL
from vllm.distributed import get_tensor_model_parallel_rank
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.worker import canary

whole = canary._changed

def changed(before, after):
    return get_tensor_model_parallel_rank() == 0 and whole(before, after)

canary._changed = changed
if __name__ == "__main__":  # ranks import this file, too
    engine(MODEL, {"bundle": sys.argv[1]}, tensor_parallel_size=2)
"""


@pytest.mark.skipif(RUNNER == "v2", reason="the vote is the same on both runners")
def test_what_one_rank_finds_ends_the_start_of_all(
    bundle: Path, tmp_path: Path
) -> None:
    """No rank waits in a pass for one that has raised; all say what it found."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    done = apart(script, bundle)
    assert done.returncode != 0
    found = "rank 1: site decoder.1: the op ran, but the model's output did not change"
    assert f"Worker failed with error '{found}'" in done.stderr
    assert "Worker failed with error 'site" not in done.stderr
