# SPDX-License-Identifier: Apache-2.0
"""The models that a bundle belongs to."""

import json

import pytest

from tests.bundle.test_bundle import build_bundle, write_model
from vllm_sauce.bundle import Bundle
from vllm_sauce.errors import BundleMismatchError


def test_check_model_names_every_difference(tmp_path, model_dir, bundle_dir):
    bundle = Bundle.load(bundle_dir)
    bundle.check_model(model_dir)
    other = write_model(tmp_path / "other", text_config={"hidden_size": 5})
    with pytest.raises(BundleMismatchError) as caught:
        bundle.check_model(other)
    for field in ("text.hidden_size: 4, not 5", "text.vocab_size", "weights_sha256"):
        assert field in str(caught.value)


def test_check_model_sees_other_weights(model_dir, bundle_dir):
    bundle = Bundle.load(bundle_dir)
    (model_dir / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(BundleMismatchError, match="weights_sha256"):
        bundle.check_model(model_dir)


@pytest.mark.parametrize("where", ["config.json", "text_config", "hf_quant"])
def test_a_quantised_copy_is_served_where_it_is_allowed(
    tmp_path, model_dir, bundle_dir, where
):
    """Of the same sizes: other weights, and nothing else."""
    bundle = Bundle.load(bundle_dir)
    quantized = {"quantization_config": {"quant_method": "awq"}}
    sizes = json.loads((model_dir / "config.json").read_text())["text_config"]
    copy = write_model(tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    if where == "config.json":
        config |= quantized
    elif where == "text_config":
        config["text_config"] = sizes | quantized
    else:
        (copy / "hf_quant_config.json").write_text("{}")
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").write_bytes(b"fewer bits")
    with pytest.raises(BundleMismatchError, match="--sauce-allow-quantized"):
        bundle.check_model(copy)
    bundle.check_model(copy, allow_quantized=True)
    config["text_config"]["hidden_size"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleMismatchError, match=r"text\.hidden_size: 4, not 5"):
        bundle.check_model(copy, allow_quantized=True)


def test_other_weights_that_are_not_quantised_are_never_allowed(model_dir, bundle_dir):
    bundle = Bundle.load(bundle_dir)
    (model_dir / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(BundleMismatchError, match="made for$"):
        bundle.check_model(model_dir, allow_quantized=True)


def test_a_model_without_weights_fits_only_a_bundle_made_without(tmp_path, model_dir):
    bare = write_model(tmp_path / "bare")
    build_bundle(bare).check_model(bare)
    with pytest.raises(BundleMismatchError, match="weights_sha256"):
        build_bundle(model_dir).check_model(bare)
    with pytest.raises(BundleMismatchError, match="weights_sha256"):
        build_bundle(bare).check_model(model_dir)
