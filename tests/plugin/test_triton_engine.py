# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels and the plans they read, in engines on V2; interpreted, so few.

The tests are those of the files that they come from, the engines others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import starts_engine
from tests.plugin import test_engine
from tests.plugin.conftest import RUNNER, engine, tight_engine
from tests.plugin.support import Ask, run, runner_of
from vllm_sauce.plugin.worker import canary
from vllm_sauce.plugin.worker.runtime import runtime_of
from vllm_sauce_kernels.masked_edit import dispatch

pytestmark = pytest.mark.skipif(RUNNER != "v2", reason="Triton is interpreted with V2")


@pytest.fixture(scope="module", autouse=True)
def launches() -> Iterator[list[int]]:
    """The numbers of tokens that the Triton form is given while this file runs."""
    seen: list[int] = []
    launch = dispatch.masked_edit_triton

    def counted(*args: Any) -> None:
        seen.append(len(args[0]))
        launch(*args)

    with pytest.MonkeyPatch.context() as patch:
        # Engines read it as they start, the op at each call.
        patch.setenv("VLLM_SAUCE_KERNEL", "triton")
        patch.setattr(dispatch, "masked_edit_triton", counted)
        yield seen


@pytest.fixture(scope="module")
@starts_engine
def sauced(model_dir: Path, bundle_dir: Path) -> Any:
    """Of this file alone, in the place of the one that others share."""
    return engine(model_dir, {"bundle": str(bundle_dir)})


@pytest.fixture(scope="module")
@starts_engine
def tight(model_dir: Path, bundle_dir: Path) -> Any:
    """Of this file alone, too."""
    with pytest.MonkeyPatch.context() as patch:
        # The other engine has compared the op on all sizes, of the same rows.
        patch.setattr(canary, "SIZES", (1, 16))
        return tight_engine(model_dir, bundle_dir)


def test_the_kernels_are_tritons(sauced: Any, launches: list[int]) -> None:
    """With plans, which no other form on a CPU has."""
    launches.clear()
    run(sauced, [Ask(None, "what is it ?", ("read",), max_tokens=2)])
    assert len(launches) >= 2
    runtime = runtime_of(runner_of(sauced).model)
    assert runtime is not None
    (site,) = runtime.decoder.values()
    assert site.plan is not None


test_mixed_batch = test_engine.test_mixed_batch
test_chunked_prefill = test_engine.test_chunked_prefill
