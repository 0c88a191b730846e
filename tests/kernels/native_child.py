# SPDX-License-Identifier: Apache-2.0
"""What a process of test_native_build.py does, before the kernel is built and after."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import pytest
import torch

from tests.kernels.inputs import expected, make_args, small_integers
from vllm_sauce_kernels.masked_edit import (
    dispatch,
    masked_edit,
    masked_edit_eager,
    native,
)


def tell(backend: str) -> None:
    """Do it, and write what was found."""
    sys.stdout.write(json.dumps(prepare_and_run(backend)))


def prepare_and_run(backend: str) -> dict[str, Any]:
    """Run the op and a graph of it; again after prepare() in three threads at once."""
    calls = []

    def counted(*args: Any) -> None:
        calls.append(1)
        masked_edit_eager(*args)

    pytest.MonkeyPatch().setattr(dispatch, "masked_edit_eager", counted)
    graph = torch.compile(masked_edit, fullgraph=True, backend=backend)

    def run() -> int:
        calls.clear()
        for op in (masked_edit, graph):
            args = make_args((5, 32, 8, 4, 2), small_integers(1))
            want = expected(args)
            op(**args)
            assert torch.equal(args["hidden_states"], want["hidden_states"])
            assert torch.equal(args["edited_tokens"], want["edited_tokens"])
        return len(calls)

    def broken() -> str | None:
        args = make_args((5, 32, 8, 4, 2), small_integers(1))
        args["mask_gate"] = args["mask_gate"].double()
        try:
            masked_edit(**args)
        except ValueError as error:
            return str(error)
        return None

    python_calls, cache = run(), os.path.exists(os.environ["VLLM_SAUCE_CACHE"])
    said = broken()
    threads = [threading.Thread(target=native.prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "prepared": native.prepare(),
        "how": native.how(),
        "python_calls_before": python_calls,
        "cache_before": cache,
        "python_calls": run(),
        "same_error": said == broken() is not None,
    }


if __name__ == "__main__":
    tell(sys.argv[1])
