# SPDX-License-Identifier: Apache-2.0
"""What a measurement starts, and what it does not ask twice."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.measuring.measure import measure
from vllm_sauce.measuring.settings import EvalRequest, EvalSettings


class Says:
    """Stands where the engine does; answers "none" and keeps what it was asked."""

    def __init__(self):
        self.asked, self.started = [], []

    @contextmanager
    def open(self, model, bundle, *, engine_args, sauce):
        self.started.append(sauce)
        yield self

    def ask(self, asks, progress):
        self.asked += asks
        return [Answer("none")] * len(asks)


def test_what_is_not_forgotten_is_measured_and_nothing_twice(tmp_path, monkeypatch):
    shipped = Bundle.load(TINY / "bundle")
    concepts = [
        replace(one, forgotten=one.name != "dog") for one in shipped.catalogue.values()
    ]
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    Bundle.build(shipped.fingerprint, saes, Catalogue(concepts)).save(tmp_path / "b")
    says = Says()
    monkeypatch.setattr(EngineAsker, "open", says.open)
    request = EvalRequest(
        tmp_path / "b",
        model="m",
        concepts=TINY / "concepts.yaml",
        out=tmp_path / "out",
        names=("dog", "red"),
        settings=EvalSettings(positives=2, negatives=2, together=()),
    )
    first = measure(request)
    assert says.started == [{"allow_weak": ["dog"]}]
    count = len(says.asked)
    assert measure(request) == first and len(says.asked) == count
    with pytest.raises(ConfigError, match="differs in model"):
        measure(replace(request, model="other"))
