# SPDX-License-Identifier: Apache-2.0
"""After the start: sleep, wake, new weights, a new bundle. Proven again, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.support import Ask, Reply, cold, run, runner_of
from vllm_sauce.bundle import Bundle
from vllm_sauce.errors import (
    BundleMismatchError,
    CanaryError,
    InvalidRequestError,
    UnknownConceptError,
    UnsupportedFeatureError,
)

WHAT = "what is in the picture ?"
MASKED = [Ask(1, WHAT, (name,)) for name in ("seen", "read", "both")]


@pytest.fixture(scope="module")
def folders(
    model_dir: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Copies of model and bundle that a test may change."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(model_dir, folder / "model")
    shutil.copytree(bundle_dir, folder / "bundle")
    return folder / "model", folder / "bundle"


@pytest.fixture(scope="module")
@starts_engine
def llm(folders: tuple[Path, Path]) -> Iterator[Any]:
    """An engine on them."""
    model, bundle = folders
    yield engine(model, {"bundle": str(bundle)})


@pytest.fixture(scope="module")
def expected(llm: Any) -> list[Reply]:
    """What it answers right after the start."""
    cold(llm)
    return run(llm, MASKED)


def core(llm: Any) -> Any:
    """Return the engine core, which lives in this process."""
    return llm.llm_engine.engine_core.engine_core


def answers_as(llm: Any, expected: list[Reply]) -> bool:
    """Say whether masked requests are answered as before."""
    cold(llm)
    return all(a.close(b) for a, b in zip(run(llm, MASKED), expected, strict=True))


def refuses(llm: Any) -> None:
    """Check that masked requests are refused, and leave nothing behind."""
    for ask in MASKED:
        with pytest.raises(InvalidRequestError, match="nothing can be forgotten now"):
            run(llm, [ask])
    assert not llm.llm_engine.has_unfinished_requests()


def wake_all(llm: Any) -> None:
    """Bring an engine back, whatever a test left."""
    llm.wake_up()
    llm.collective_rpc("reload_weights")


def test_every_tensor_of_a_site_is_a_buffer(llm: Any) -> None:
    """vLLM saves buffers before it throws the device's memory away."""
    from vllm_sauce.unlearning.slots import OP_TENSORS

    runner = runner_of(llm)
    kept = {buffer.data_ptr() for _, buffer in runner.model.named_buffers()}
    runtime = runner.model._sauce_action
    tables = [site.table for site in runtime.decoder.values()]
    for table in [*tables, runtime.vision["vision"].table]:
        tensors = {n: t for n, t in vars(table).items() if isinstance(t, torch.Tensor)}
        on_device = {n: t for n, t in tensors.items() if not n.startswith("_")}
        assert set(on_device) == set(OP_TENSORS)
        assert all(tensor.data_ptr() in kept for tensor in on_device.values())


@pytest.mark.feature("sleep and wake")
def test_sleep_and_wake(llm: Any, expected: list[Reply]) -> None:
    """Asleep, nothing is forgotten and nobody is told otherwise; awake, as before."""
    llm.sleep(1)
    refuses(llm)
    llm.wake_up(["weights"])
    refuses(llm)
    llm.wake_up(["kv_cache"])
    assert answers_as(llm, expected)


@pytest.mark.feature("sleep and wake")
def test_deep_sleep_needs_the_weights_again(llm: Any, expected: list[Reply]) -> None:
    """Level 2 discards them: a proof on what is there would prove nothing."""
    llm.sleep(2)
    llm.wake_up()
    refuses(llm)
    llm.collective_rpc("reload_weights")
    assert answers_as(llm, expected)


@pytest.mark.parametrize("site", ["vision", "decoder"])
def test_rows_lost_in_sleep_are_found(
    llm: Any, expected: list[Reply], site: str
) -> None:
    """What comes back empty is not served; the engine stays asleep."""
    runtime = runner_of(llm).model._sauce_action
    tables = runtime.tables
    rows = {"vision": tables["vision"], "decoder": tables["decoder.1"]}[site].W_dec_rows
    kept = rows.clone()
    llm.sleep(1)
    rows.zero_()
    try:
        with pytest.raises(CanaryError, match="not those that were loaded"):
            llm.wake_up()
        refuses(llm)
    finally:
        rows.copy_(kept)
        wake_all(llm)
    assert answers_as(llm, expected)


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("reload_weights", {"weights_path": "elsewhere"}),
        ("reload_weights", {"weights_iterator": iter(())}),
        ("update_config", {"overrides": {}}),
        ("update_weights", {"update_info": {}}),
        ("reset_weights", {}),
        ("start_weight_update", {}),
        ("finish_weight_update", {}),
        ("init_weight_transfer_engine", {"init_info": {}}),
    ],
)
def test_other_weights_are_refused(
    llm: Any, expected: list[Reply], method: str, kwargs: dict[str, Any]
) -> None:
    """The bundle belongs to the weights of the start."""
    with pytest.raises(UnsupportedFeatureError, match="start a server"):
        llm.collective_rpc(method, kwargs=kwargs)
    assert answers_as(llm, expected)


def swap_channels(worker: Any) -> None:
    """Another model of the same numbers, as an extension's method may make it."""
    for name, weight in worker.model_runner.model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data.copy_(weight.data.flip(0))


def load_others(worker: Any) -> None:
    """As trainers do who hand their weights to vLLM step by step."""
    worker.model_runner.model.load_weights([])


@pytest.mark.feature("weight reload")
@pytest.mark.parametrize("change", [swap_channels, load_others])
def test_weights_that_come_another_way_are_found(
    llm: Any, expected: list[Reply], change: Callable[..., Any]
) -> None:
    """Whatever a call to the workers does: nothing is forgotten until a reload."""
    llm.collective_rpc(change)
    refuses(llm)
    llm.collective_rpc(lambda worker: None)
    refuses(llm)
    llm.collective_rpc("reload_weights")
    assert answers_as(llm, expected)


def test_a_call_that_changes_nothing_costs_nothing(
    llm: Any, expected: list[Reply]
) -> None:
    llm.collective_rpc(lambda worker: worker.model_runner.model.training)
    assert answers_as(llm, expected)


@pytest.mark.feature("weight reload")
def test_the_same_weights_again(llm: Any, expected: list[Reply]) -> None:
    """A reload is proven like a start."""
    runtime = runner_of(llm).model._sauce_action
    llm.collective_rpc("reload_weights")
    assert runtime.proven
    assert answers_as(llm, expected)


@pytest.mark.feature("weight reload")
def test_weights_replaced_on_the_disk(
    llm: Any, folders: tuple[Path, Path], expected: list[Reply]
) -> None:
    """A reload that finds another model leaves nothing that may be forgotten."""
    (path,) = folders[0].glob("*.safetensors")
    weights = load_file(path)
    original = path.read_bytes()
    try:
        changed = {name: tensor.clone() for name, tensor in weights.items()}
        next(iter(changed.values())).add_(0.01)
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(BundleMismatchError):
            llm.collective_rpc("reload_weights")
        refuses(llm)
    finally:
        path.write_bytes(original)
        wake_all(llm)
    assert answers_as(llm, expected)


def test_a_bundle_replaced_on_the_disk_changes_nothing(
    llm: Any, folders: tuple[Path, Path], expected: list[Reply], tmp_path: Path
) -> None:
    """Catalogue and rows are those of the start, for admission and worker alike."""
    bundle = folders[1]
    shutil.copytree(bundle, tmp_path / "kept")
    loaded = Bundle.load(bundle)
    shutil.rmtree(bundle)
    try:
        assert answers_as(llm, expected)
        with pytest.raises(UnknownConceptError, match="the catalogue has 3 concepts"):
            run(llm, [Ask(1, WHAT, ("nobody",))])
        assert (
            loaded.catalogue.names()
            == core(llm)._sauce_admission.bundle.catalogue.names()
        )
    finally:
        shutil.copytree(tmp_path / "kept", bundle)
