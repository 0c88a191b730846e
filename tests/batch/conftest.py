# SPDX-License-Identifier: Apache-2.0
"""Actors run vLLM as a user's do, whatever other tests of the session set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def ordinary_environment() -> Iterator[None]:
    """Take back what tests/plugin/conftest.py sets for its own engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        patch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        yield
