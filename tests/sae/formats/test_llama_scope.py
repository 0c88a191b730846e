# SPDX-License-Identifier: Apache-2.0
"""lm_saes' formula and SAELens' reader are the oracles."""

import math

import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_against_sae_lens,
    check_equal,
    detect_format,
    numbers,
    sae_lens_hub,
    write_json,
)
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import load_foreign

__all__ = ["sae_lens_hub"]
NAME = "Llama3_1-8B-Base-L15R-8x"
NORM = 0.9


def write(root, unit_rows=False, **changes):
    config = {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.25,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
        **changes,
    }
    folder = write_json(root / NAME / "hyperparams.json", config)
    decoder = numbers(D_MODEL, D_SAE, seed=2)
    parameters = {
        "encoder.weight": numbers(D_SAE, D_MODEL, seed=1),
        "encoder.bias": numbers(D_SAE, seed=3),
        "decoder.weight": decoder / decoder.norm(dim=0) if unit_rows else decoder,
        "decoder.bias": numbers(D_MODEL, seed=4),
    }
    (folder / "checkpoints").mkdir()
    save_file(parameters, folder / "checkpoints" / "final.safetensors")
    return folder, parameters


def lm_saes(parameters, pre_encoder=False):
    """Initializer's state "inference": standardise, unit decoder rows, threshold.

    Latents there are in units of the unscaled activation; the last factors of encode
    and decode bring them to ours, which are scaled as in training.
    """
    scale = math.sqrt(D_MODEL) / NORM
    weight, bias = parameters["encoder.weight"], parameters["encoder.bias"] / scale
    decoder, b_dec = parameters["decoder.weight"], parameters["decoder.bias"] / scale
    norm = decoder.norm(dim=0)

    def encode(x):
        x = x - b_dec if pre_encoder else x
        hidden_pre = (x @ weight.T + bias) * norm
        return hidden_pre.relu() * (hidden_pre > 0.25) * scale

    return encode, lambda acts, x: (acts / scale) @ (decoder / norm).T + b_dec


@pytest.mark.parametrize("pre_encoder", [False, True])
def test_as_lm_saes_serves_it(tmp_path, pre_encoder):
    folder, parameters = write(tmp_path, apply_decoder_bias_to_pre_encoder=pre_encoder)
    assert detect_format(folder) == "llama_scope"
    assert detect_format(folder / "checkpoints" / "final.safetensors") == "llama_scope"
    loaded = load_foreign(folder)
    check_equal(loaded.weights, *lm_saes(parameters, pre_encoder), scale=0.5)
    assert "decoder norms" in " ".join(loaded.folded)
    assert "input scale 2.722" in " ".join(loaded.folded)


def test_as_sae_lens_reads_it_where_decoder_rows_are_of_norm_one(
    tmp_path, sae_lens_hub
):
    folder, _ = write(tmp_path, unit_rows=True)
    cfg, state, _ = sae_lens_hub.llama_scope_sae_huggingface_loader(
        "fnlp/LXR-8x", NAME, cfg_overrides={"dtype": "float32"}
    )
    scale = math.sqrt(D_MODEL) / NORM
    state["W_enc"] = state["W_enc"] * scale
    state["W_dec"] = state["W_dec"] / scale
    state["b_dec"] = state["b_dec"] / scale
    sae = load_foreign(folder).weights
    check_against_sae_lens(sae, cfg, state, normalize_activations="none")
    torch.testing.assert_close(sae.threshold, state["threshold"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"norm_activation": "token-wise"}, "norm_activation"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"jump_relu_threshold": "much"}, "jump_relu_threshold"),
        ({"dataset_average_activation_norm": {"in": 1, "out": 2}}, "one number"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 0}}, "above 0"),
    ],
)
def test_what_cannot_be_folded_is_refused(tmp_path, change, word):
    folder, _ = write(tmp_path, **change)
    with pytest.raises(UnsupportedSAEError, match=word):
        load_foreign(folder)
