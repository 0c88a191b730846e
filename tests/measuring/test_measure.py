# SPDX-License-Identifier: Apache-2.0
"""What a measurement starts, and what it does not ask twice."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import BundleError, ConfigError
from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.measuring import scores
from vllm_sauce.measuring.measure import ANSWERS_FILE, RUN_FILE, measure
from vllm_sauce.measuring.settings import EvalRequest, EvalSettings

MODE = {"dtype": "float32", "eager": True}


class Says:
    """Stands where the engine does; answers "none" and keeps what it was asked."""

    tokenizer = SimpleNamespace(
        encode=lambda text, add_special_tokens: list(text.encode()),
        decode=lambda ids: bytes(ids).decode(),
    )

    def __init__(self):
        self.asked, self.started, self.folders = [], [], []

    @contextmanager
    def open(self, model, bundle, *, engine_args, sauce):
        self.started.append(sauce)
        self.folders.append(bundle)
        yield self

    def mode(self):
        return MODE

    def ask(self, asks, progress):
        self.asked += asks
        return [Answer("none", logprobs=dict.fromkeys(a.wanted, -2.0)) for a in asks]


def test_what_is_not_forgotten_is_measured_and_nothing_twice(tmp_path, monkeypatch):
    shipped = Bundle.load(TINY / "latents")
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
    run = json.loads((request.out / RUN_FILE).read_text())
    older = {name: value for name, value in run.items() if name != "banned_endings"}
    (request.out / RUN_FILE).write_text(json.dumps(older))
    with pytest.raises(ConfigError, match="differs in banned_endings"):
        measure(request)
    (request.out / RUN_FILE).write_text(json.dumps(run))
    # Kept by a version that read no probabilities: those are asked again.
    kept = request.out / ANSWERS_FILE
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    read = sum(line.pop("leak", None) is not None for line in lines)
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measure(request) == first
    assert 0 < read == len(says.asked) - count < count


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A request to measure the latents beside another bundle, and what is asked."""
    # How wide an interval is nobody looks at here.
    monkeypatch.setattr(scores, "REPLICATES", 8)
    shipped = Bundle.load(TINY / "latents")
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    dog = [shipped.catalogue.concept("dog")]
    Bundle.build(shipped.fingerprint, saes, Catalogue(dog)).save(tmp_path / "other")
    says = Says()
    monkeypatch.setattr(EngineAsker, "open", says.open)
    request = EvalRequest(
        TINY / "latents",
        model="m",
        concepts=TINY / "concepts.yaml",
        out=tmp_path / "out",
        names=("dog",),
        beside={"simple": tmp_path / "other"},
        settings=EvalSettings(positives=2, negatives=2, together=()),
    )
    return request, says


def test_each_bundle_has_an_engine_and_is_asked_the_same(two):
    request, says = two
    found = measure(request)
    assert list(found.means) == ["plain", "ours", "prompt", "ban", "simple"]
    assert says.folders == [request.bundle, request.beside["simple"]]
    edited = [ask for ask in says.asked if ask.forget]
    half = len(edited) // 2
    assert edited[:half] == edited[half:] and half > 4
    assert found.alone["ours"] == found.alone["simple"]
    # Done, it starts none.
    assert measure(request) == found and len(says.folders) == 2


def test_what_is_recorded_is_of_all_concepts(two):
    request, _ = two
    with pytest.raises(ConfigError, match="neither --concept nor an empty"):
        replace(request, record=True)
    whole = replace(request, names=(), settings=EvalSettings(methods=("ban",)))
    with pytest.raises(ConfigError, match="add --method ours"):
        replace(whole, record=True)
    served = replace(whole, beside={}, url="http://localhost:1/v1")
    with pytest.raises(ConfigError, match="does not prove which bundle"):
        replace(served, record=True)
    few = request.out.with_name("few.yaml")
    text = request.concepts.read_text().replace("pictures/", f"{TINY}/pictures/")
    few.write_text(text[: text.index("  leather:")])
    whole = replace(request, names=(), beside={}, settings=EvalSettings(), record=True)
    with pytest.raises(ConfigError, match="few.yaml has no 'leather'"):
        measure(replace(whole, concepts=few))


def test_what_cannot_be_recorded_is_refused_before_anything_is_asked(two, tmp_path):
    request, says = two
    shutil.copytree(request.beside["simple"], tmp_path / "mine")
    one = replace(
        request,
        names=(),
        beside={},
        bundle=tmp_path / "mine",
        settings=EvalSettings(),
        record=True,
    )
    with pytest.raises(ConfigError, match="of 1 concepts: say --together how many"):
        measure(one)
    shutil.copytree(request.bundle, tmp_path / "pulled")
    (tmp_path / "pulled" / "README.md").touch()
    with pytest.raises(BundleError, match="README.md"):
        measure(replace(one, bundle=tmp_path / "pulled"))
    assert not says.asked


def test_a_bundle_beside_must_know_the_concepts(two):
    request, _ = two
    with pytest.raises(ConfigError, match="other has no concept 'red'; choose those"):
        measure(replace(request, names=("dog", "red")))


def test_what_is_beside_is_not_called_as_a_method_is(two):
    request, _ = two
    with pytest.raises(ConfigError, match="'ban' is a method"):
        replace(request, beside={"ban": request.bundle})
    with pytest.raises(ConfigError, match="a server has one bundle"):
        replace(request, url="http://localhost:1/v1")
