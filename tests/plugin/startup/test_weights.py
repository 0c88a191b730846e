# SPDX-License-Identifier: Apache-2.0
"""Nothing is loaded but what is compared with the bundle's fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.places import TINY, TINY_MODEL
from vllm_sauce.bundle import Bundle
from vllm_sauce.bundle.fingerprint import INDEX_FILE, weights_files
from vllm_sauce.errors import BundleMismatchError, UnsupportedFeatureError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import weights
from vllm_sauce.plugin.startup.weights import refuse_strays, unhashed

SHARD, CONSOLIDATED = "model-1-of-1.safetensors", "consolidated.safetensors"
STRAYS = ("other.pt", "pytorch_model.bin", "other.safetensors")


def config(
    model: Path | str, load: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """Return a stand-in for the configuration of an engine that serves ``model``."""
    return SimpleNamespace(
        load_config=SimpleNamespace(**{"load_format": "auto", **(load or {})}),
        model_config=SimpleNamespace(model=str(model), revision=None, **changes),
    )


def folder_of(path: Path, *names: str, indexed: bool = False) -> Path:
    """Write empty weights, and an index of the shard."""
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    if indexed:
        index = {"weight_map": {"weight": SHARD}}
        (path / INDEX_FILE).write_text(json.dumps(index))
    return path


def read_by_vllm(folder: Path, load_format: str) -> list[str]:
    """Return the files that vLLM's loader would read."""
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    loader: Any = get_model_loader(LoadConfig(load_format=load_format))
    found = loader._prepare_weights(str(folder), None, None, True, None)
    return sorted(Path(path).name for path in found[1])


def known_formats() -> list[str]:
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

    return sorted(_LOAD_FORMAT_TO_MODEL_LOADER)


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_hashed_is_what_vllm_reads(tmp_path: Path, indexed: bool) -> None:
    """Whatever lies beside it, by each format that passes and that this vLLM has."""
    folder = folder_of(tmp_path / "m", SHARD, *STRAYS, indexed=indexed)
    hashed = [file.name for file in weights_files(folder)]
    assert hashed == ([SHARD] if indexed else [SHARD, "other.safetensors"])
    tried = [name for name in weights.HASHED if name in known_formats()]
    assert {"auto", "hf", "safetensors"} <= {*tried}
    for name in tried:
        assert read_by_vllm(folder, name) == hashed
        assert unhashed(config(folder, {"load_format": name})) == []


def test_every_other_load_format_is_refused(tmp_path: Path) -> None:
    """Those of this vLLM, of others, and of somebody's plugin."""
    folder = folder_of(tmp_path / "m", SHARD)
    others = {*known_formats(), "gguf", "sharded_state", "theirs"} - {*weights.HASHED}
    assert {"pt", "npcache", "dummy", "tensorizer", "mistral"} <= others
    for name in others:
        (line,) = unhashed(config(folder, {"load_format": name}))
        assert line.startswith(f"--load-format {name} (") and "wanted: auto" in line


def test_formats_may_be_an_enumeration(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", SHARD)
    passes, fails = (SimpleNamespace(value=value) for value in ("auto", "pt"))
    assert unhashed(config(folder, {"load_format": passes})) == []
    assert unhashed(config(folder, {"load_format": fails})) != []


def test_random_weights_pass_where_a_benchmark_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a shape without weights; nothing that a server is given says it."""
    shape = config(folder_of(tmp_path / "m"), {"load_format": "dummy"})
    (line,) = unhashed(shape)
    assert "dummy (random weights" in line
    monkeypatch.setattr(weights, "random_allowed", True)
    assert unhashed(shape) == []
    assert unhashed(config(tmp_path / "m", {"load_format": "pt"})) != []


@pytest.mark.parametrize("load_format", ["auto", "hf"])
def test_weights_that_are_no_safetensors_are_refused(
    tmp_path: Path, load_format: str
) -> None:
    folder = folder_of(tmp_path / "m", "pytorch_model.bin", "other.pt")
    assert read_by_vllm(folder, load_format) == ["pytorch_model.bin"]
    served = config(folder, {"load_format": load_format})
    (line,) = unhashed(served)
    assert "save the model as safetensors" in line
    with pytest.raises(UnsupportedFeatureError, match="nobody compared: weights in"):
        refuse_strays(served, folder)


@pytest.mark.parametrize("load_format", ["auto", "mistral", "safetensors"])
@pytest.mark.parametrize("indexed", [True, False])
def test_weights_that_vllm_prefers_to_the_hashed_ones_are_refused(
    tmp_path: Path, indexed: bool, load_format: str
) -> None:
    """What the refusal rests on is vLLM's choice; where it reads all, all is hashed."""
    folder = folder_of(tmp_path / "m", SHARD, CONSOLIDATED, indexed=indexed)
    hashed = [file.name for file in weights_files(folder)]
    found = unhashed(config(folder, {"load_format": load_format}))
    assert bool(found) == (read_by_vllm(folder, load_format) != hashed)
    assert bool(found) == (load_format != "safetensors")
    if load_format == "auto":
        assert f"{CONSOLIDATED} in the model's folder" in found[0]


def test_a_consolidated_file_alone_is_hashed_and_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", CONSOLIDATED)
    assert read_by_vllm(folder, "auto") == [CONSOLIDATED]
    assert unhashed(config(folder)) == []


def test_another_config_than_the_compared_one_is_refused(tmp_path: Path) -> None:
    """Mistral's, asked for or found beside its weights."""
    folder = folder_of(tmp_path / "m", SHARD)
    for name in ("mistral", "theirs"):
        (line,) = unhashed(config(folder, config_format=name))
        assert f"--config-format {name}" in line
    (folder / "params.json").touch()
    assert unhashed(config(folder, config_format="auto")) == []
    folder_of(folder, CONSOLIDATED, indexed=True)
    by_safetensors = {"load_format": "safetensors"}
    (line,) = unhashed(config(folder, by_safetensors, config_format="auto"))
    assert "params.json" in line and "--config-format hf" in line
    assert unhashed(config(folder, by_safetensors, config_format="hf")) == []


def test_a_name_on_the_hub_is_read_where_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cache and another hub hold another copy; a folder is read as it is."""
    folder = folder_of(tmp_path / "m", SHARD)
    at: dict[str, Path | None] = {"org/name": None, str(folder): folder}
    monkeypatch.setattr(compat, "local_model_dir", lambda name, revision: at[name])
    assert unhashed(config("org/name")) == []
    elsewhere = {"download_dir": "/elsewhere"}
    (line,) = unhashed(config("org/name", elsewhere))
    assert "--download-dir /elsewhere" in line and "HF_HOME" in line
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    (line,) = unhashed(config("org/name"))
    assert "VLLM_USE_MODELSCOPE" in line
    assert unhashed(config(folder, elsewhere)) == []
    (line,) = unhashed(config(folder, model_weights="s3://weights"))
    assert "weights at s3://weights" in line


def test_a_name_on_the_hub_is_looked_at_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "m", SHARD, CONSOLIDATED, indexed=True)
    monkeypatch.setattr(compat, "local_model_dir", lambda name, revision: folder)
    (line,) = unhashed(config("org/name"))
    assert CONSOLIDATED in line


@pytest.mark.engine
def test_an_engine_does_not_start_with_other_weights(tmp_path: Path) -> None:
    """By vLLM's own configuration of the shipped model."""
    from vllm import LLM

    from vllm_sauce.plugin import register

    register()
    options: dict[str, Any] = {
        "dtype": "float32",
        "additional_config": {"sauce": {"bundle": str(TINY / "latents")}},
    }
    for load_format in ("pt", "dummy"):
        with pytest.raises(UnsupportedFeatureError, match=f"format {load_format}"):
            LLM(str(TINY_MODEL), load_format=load_format, **options)


@pytest.mark.engine
def test_an_engine_does_not_start_with_another_config(tmp_path: Path) -> None:
    """Beside the same weights, with the site at another layer of the tower."""
    from vllm import LLM

    from vllm_sauce.plugin import register

    register()
    Bundle.load(TINY / "latents").stamped(TINY_MODEL).save(tmp_path / "bundle")
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    told = {**json.loads(file.read_text()), "vision_feature_layer": -3}
    file.write_text(json.dumps(told))
    with pytest.raises(BundleMismatchError, match="vision_feature_layer: -2, not -3"):
        LLM(
            str(tmp_path / "model"),
            dtype="float32",
            additional_config={"sauce": {"bundle": str(tmp_path / "bundle")}},
        )
