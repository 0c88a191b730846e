# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.bundle.test_bundle import build_bundle, write_model


@pytest.fixture
def model_dir(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def bundle_dir(tmp_path, model_dir):
    build_bundle(model_dir).save(tmp_path / "bundle")
    return tmp_path / "bundle"
