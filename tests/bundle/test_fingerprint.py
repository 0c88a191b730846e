# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a model whose weights an index names."""

import json

import pytest

from tests.bundle.test_bundle import write_model
from tests.places import TINY, TINY_MODEL
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.errors import ConfigError


def shards(folder, *names, weight_map=None):
    """Write shards and the index that names them."""
    for name in names:
        (folder / name).write_bytes(name.encode())
    if weight_map is None:
        weight_map = {f"layer.{name}.weight": name for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_files_that_the_index_does_not_name_are_no_part_of_the_model(tmp_path):
    model_dir = write_model(tmp_path / "model")
    names = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    for name in names:
        (model_dir / name).write_bytes(name.encode())
    before = fingerprint_model(model_dir)
    shards(model_dir, *names)
    assert fingerprint_model(model_dir) == before
    (model_dir / "consolidated.safetensors").write_bytes(b"the same weights again")
    assert fingerprint_model(model_dir) == before
    (model_dir / names[0]).write_bytes(b"others")
    assert fingerprint_model(model_dir) != before


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    model_dir = write_model(tmp_path / "model")
    shards(model_dir, "model-1-of-1.safetensors")
    (model_dir / "model-1-of-1.safetensors").unlink()
    for weights in (True, False):
        with pytest.raises(ConfigError, match="names model-1-of-1.*missing"):
            fingerprint_model(model_dir, weights=weights)


@pytest.mark.parametrize("weight_map", [[], "model.safetensors", {"a": 3}])
def test_an_index_that_names_no_files_is_refused(tmp_path, weight_map):
    model_dir = write_model(tmp_path / "model")
    shards(model_dir, weight_map=weight_map)
    with pytest.raises(ConfigError, match="in which file each weight lies"):
        fingerprint_model(model_dir)


def test_the_shipped_bundle_fits_the_shipped_model():
    Bundle.load(TINY / "bundle", weights=False).check_model(TINY_MODEL)


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="no model here"):
        fingerprint_model(tmp_path)
