# SPDX-License-Identifier: Apache-2.0
"""Every kind that SAELens saves for inference; its classes are the oracle."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_equal,
    detect_format,
    numbers,
)
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import LoadOptions, load_foreign

pytest.importorskip("sae_lens")


def save(folder, kind, **options):
    from sae_lens import saes

    cfg = getattr(saes, f"{kind}SAEConfig")(d_in=D_MODEL, d_sae=D_SAE, **options)
    sae = getattr(saes, f"{kind}SAE")(cfg)
    with torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in sae.named_parameters():
            parameter.normal_()
            if name == "threshold":
                parameter.abs_()
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize(
    ("kind", "options", "folded"),
    [
        ("Standard", {}, ()),
        ("JumpReLU", {"apply_b_dec_to_input": False}, ()),
        ("Gated", {}, ("gate into a threshold",)),
        ("TopK", {"k": 4}, ()),
        (
            "TopK",
            {"k": 4, "rescale_acts_by_decoder_norm": True},
            ("decoder norms into the encoder",),
        ),
    ],
)
def test_kinds(tmp_path, kind, options, folded):
    theirs = save(tmp_path, kind, **options)
    assert detect_format(tmp_path) == "sae_lens"
    loaded = load_foreign(tmp_path)
    assert loaded.folded == folded
    with torch.no_grad():
        check_equal(loaded.weights, theirs.encode, lambda acts, x: theirs.decode(acts))


def test_the_weights_file_keeps_its_name(tmp_path):
    save(tmp_path, "Standard")
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedSAEError, match="other"):
        load_foreign(tmp_path)


def test_sae_v(tmp_path):
    """What SAELens-V writes, a relative of version 3 that keeps the trainer's words."""
    config = {
        "architecture": "standard",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cuda:0",
        "model_name": "mistralai/Mistral-7B-Instruct-v0.2",
        "hook_name": "blocks.16.hook_resid_post",
        "hook_layer": 16,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": False,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": "3.18.2",
        "prepend_bos": True,
        "dataset_path": "./data/processed_dataset",
        "dataset_trust_remote_code": True,
        "context_size": 4096,
        "normalize_activations": "none",
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {"n_devices": 2},
        # As its trainer adds them to a checkpoint's.
        "local_model_path": None,
        "model_class_name": "HookedLlava",
        "tokens_per_buffer": 536870912,
    }
    state = {
        "W_enc": numbers(D_MODEL, D_SAE, seed=1),
        "W_dec": numbers(D_SAE, D_MODEL, seed=2),
        "b_enc": numbers(D_SAE, seed=3),
        "b_dec": numbers(D_MODEL, seed=4),
    }
    save_file(state, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert detect_format(tmp_path) == "sae_lens"
    loaded = load_foreign(tmp_path)
    check_equal(
        loaded.weights,
        lambda x: torch.relu(x @ state["W_enc"] + state["b_enc"]),
        lambda acts, x: acts @ state["W_dec"] + state["b_dec"],
    )
    # What its trainer writes, whether or not the factor is in the weights by then.
    config["normalize_activations"] = "expected_average_only_in"
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedSAEError, match="--factor-folded"):
        load_foreign(tmp_path)
    told = load_foreign(tmp_path, options=LoadOptions(factor_folded=True))
    assert told.folded == ("the input's factor, as --factor-folded says",)
    for name, tensor in loaded.weights.tensors().items():
        torch.testing.assert_close(told.weights.tensors()[name], tensor, rtol=0, atol=0)


def test_a_factor_is_folded_only_where_there_is_one(tmp_path):
    save(tmp_path, "Standard")
    with pytest.raises(UnsupportedSAEError, match="leave out --factor-folded"):
        load_foreign(tmp_path, options=LoadOptions(factor_folded=True))
