# SPDX-License-Identifier: Apache-2.0
"""The proofs of the start on weights that nobody here made: SmolLM2-135M-Instruct.

Random weights have no token whose norm dwarfs the others, and no layer after which the
stream is small beside what comes.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import RUNNER
from tests.plugin.models.compared import COMPILED, start
from tests.plugin.random_bundle import random_sae
from tests.smollm2 import smollm2
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import CanaryError
from vllm_sauce.models.architectures import LAYERS
from vllm_sauce.plugin.worker import form_check

pytestmark = pytest.mark.engine

SITES = [f"decoder.{i}" for i in (0, 1, 12, 24, 29)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    edit = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
    concept = Concept(name="a", domain="d", edits=dict.fromkeys(SITES, edit))
    saes = {site: random_sae(i, 576) for i, site in enumerate(SITES)}
    Bundle.build(fingerprint_model(smollm2()), saes, Catalogue([concept])).save(folder)
    return folder


def skip_nan(dtype: str) -> None:
    """Plain vLLM makes NaN of them there."""
    if RUNNER == "v2" and COMPILED and dtype != "float32":
        pytest.skip("half precision, compiled, beside Triton's interpreter")


@dataclass
class Distances:
    """What the form check measured: moved and still, in turn."""

    found: list[float]

    def __call__(self, one: Any, other: Any) -> float:
        self.found.append(float((one - other).square().mean().sqrt()))
        return self.found[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_form_is_proven_in_every_type(
    dtype: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin: half of what is allowed, at the first, middle and last layers."""
    skip_nan(dtype)
    distances = Distances([])
    monkeypatch.setattr(form_check, "_distance", distances)
    llm = start(smollm2(), bundle, dtype=dtype, max_model_len=256)
    pairs = list(zip(distances.found[::2], distances.found[1::2], strict=True))
    assert len(pairs) == len(SITES)
    for moved, still in pairs:
        assert still < form_check._TOLERANCE / 2 * moved
    del llm
    gc.collect()


def test_a_wrong_form_is_found_in_half_precision(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_nan("bfloat16")
    monkeypatch.setitem(LAYERS, "LlamaDecoderLayer", "first")
    with pytest.raises(CanaryError, match="listed as 'first', but the model does not"):
        start(smollm2(), bundle, dtype="bfloat16", max_model_len=256)
