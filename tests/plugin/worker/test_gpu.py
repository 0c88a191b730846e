# SPDX-License-Identifier: Apache-2.0
"""A step's numbers on a real GPU: ``pytest -m gpu tests/plugin/worker``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from tests.plugin.worker.doubles import step_of
from tests.unlearning.test_slots import build_table, mask
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce_kernels.masked_edit import plan_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Fail on what makes the host wait for a GPU, as VLLM_GPU_SYNC_CHECK=error does."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_no_step_waits_for_the_gpu(request: pytest.FixtureRequest) -> None:
    """New masks, changed batches, idle ones; and each step's numbers arrive."""
    site = "decoder.1"
    table = build_table(4, device="cuda")
    runtime = SauceRuntime(cast(Any, None), {site: table}, 16)
    runtime.proven = True
    decoder = runtime.decoder[site]
    seen = []
    request.getfixturevalue("no_waiting")
    for masks in (
        [None, mask("dog")],
        [mask("dog"), mask("cat")],
        [mask("cat"), mask("dog")],
        [None, None],
    ):
        step_of(runtime, masks, [1, 5], [3, 1])
        assert decoder.plan is not None
        seen.append((decoder.slot_of_token.clone(), decoder.plan.clone()))
    torch.cuda.set_sync_debug_mode("default")
    slots = [slots[:4].tolist() for slots, _ in seen]
    assert slots == [[-1] * 3 + [0], [0] * 3 + [1], [1] * 3 + [0], [-1] * 4]
    for written, plan in seen:
        assert torch.equal(plan.cpu(), plan_of(written, table.mask_len))
