# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels with each kind of SAE, in an engine of its own on V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plugin import test_sae_kinds, test_triton_engine

pytestmark = test_triton_engine.pytestmark

launches = test_triton_engine.launches
bundle_folder, llm = test_sae_kinds.bundle_folder, test_sae_kinds.llm


def test_each_kind_edits_as_its_own_maths_does(
    llm: Any, model_dir: Path, bundle_folder: Path, launches: list[int]
) -> None:
    launches.clear()
    test_sae_kinds.test_each_kind_edits_as_its_own_maths_does(
        llm, model_dir, bundle_folder
    )
    assert launches
