# SPDX-License-Identifier: Apache-2.0
"""What is checked before an engine starts, and what tells runs apart."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.places import TINY
from vllm_sauce.batch.job import Job, identity, make_job
from vllm_sauce.batch.run import chunks_at_once
from vllm_sauce.batch.settings import BatchRequest, Defaults
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import (
    BundleMismatchError,
    ConfigError,
    InvalidRequestError,
)
from vllm_sauce.scale.cluster import Resources


def job(model: Path = TINY / "model", **changes: Any) -> Job:
    """Return a job of sauce-tiny."""
    arguments: dict[str, Any] = {
        "bundle": str(TINY / "latents"),
        "defaults": Defaults(forget=("dog",)),
        "engine_args": {"seed": 0},
    }
    files = Path("in.jsonl"), Path("out.parquet")
    return make_job(BatchRequest(*files, model=str(model), **arguments | changes))


def test_everything_that_decides_answers_tells_runs_apart(tmp_path: Path) -> None:
    first = identity(job(), "i", 128)
    assert identity(job(), "i", 128) == first
    shutil.copytree(TINY / "latents", tmp_path / "moved")
    assert identity(job(bundle=str(tmp_path / "moved")), "i", 128) == first
    other_model = tmp_path / "model"
    shutil.copytree(TINY / "model", other_model)
    with (other_model / "chat_template.jinja").open("a") as file:
        file.write(" ")
    others = [
        identity(job(), "other", 128),
        identity(job(), "i", 64),
        identity(job(defaults=Defaults(forget=("cat",))), "i", 128),
        identity(job(defaults=Defaults(forget=("dog",), strength=2.0)), "i", 128),
        identity(job(engine_args={"seed": 1}), "i", 128),
        identity(job(other_model), "i", 128),
        identity(replace(job(), digest="other"), "i", 128),
    ]
    assert all(other != first for other in others)


def test_a_bundle_of_another_model_stops_the_run(tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(TINY / "model", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleMismatchError):
        job(other)


def test_the_environment_sets_what_a_server_would_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "cat")
    monkeypatch.setenv("VLLM_SAUCE_BUNDLE", str(TINY / "latents"))
    found = job(bundle=None, defaults=Defaults())
    assert found.sauce is not None
    assert found.sauce.forget == ("cat",)
    monkeypatch.setenv("VLLM_SAUCE_FORGTE", "cat")
    with pytest.raises(ConfigError, match="VLLM_SAUCE_FORGTE"):
        job()


def test_a_bundle_beside_the_weights_is_taken(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY / "model", model)
    plain = job(model, bundle=None, defaults=Defaults())
    assert plain.sauce is None
    assert plain.digest is None
    shutil.copytree(TINY / "latents", model / "sauce")
    found = job(model, bundle=None)
    assert found.sauce is not None
    assert found.sauce.bundle == str((model / "sauce").resolve())


def test_what_is_not_forgotten_is_refused_unless_allowed(tmp_path: Path) -> None:
    shipped = Bundle.load(TINY / "latents")
    concepts = [
        replace(c, forgotten=c.name != "dog") for c in shipped.catalogue.values()
    ]
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    weak = tmp_path / "weak"
    Bundle.build(shipped.fingerprint, saes, Catalogue(concepts)).save(weak)
    with pytest.raises(InvalidRequestError, match="found not to forget 'dog'"):
        job(bundle=str(weak))
    allowed = Defaults(forget=("dog",), allow_weak=("dog",))
    found = job(bundle=str(weak), defaults=allowed)
    assert found.sauce is not None and found.sauce.allow_weak == ("dog",)


def test_an_actor_holds_enough_chunks_to_never_wait() -> None:
    assert chunks_at_once(job(engine_args={"max_num_seqs": 64}), 128, gpu=False) == 2
    assert chunks_at_once(job(), 128, gpu=False) == 5
    assert chunks_at_once(job(), 128, gpu=True) == 17
    assert chunks_at_once(job(engine_args={"max_num_seqs": 1}), 128, gpu=True) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"actors": 0}, {"cpus_per_actor": 0.0}, {"gpus_per_actor": -1.0}],
)
def test_resources_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Resources(**wrong)
