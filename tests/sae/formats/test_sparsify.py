# SPDX-License-Identifier: Apache-2.0
"""The formula of sparsify's SparseCoder is the oracle."""

import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_equal,
    detect_format,
    numbers,
    write_json,
)
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import load_foreign

K = 4


def write(folder, d_sae=D_SAE, **changes):
    """The files of lmms-lab/llama3-llava-next-8b-hf-sae-131k, but small."""
    config = {
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": d_sae,
        "k": K,
        "multi_topk": False,
        "d_in": D_MODEL,
        **changes,
    }
    write_json(folder / "cfg.json", config)
    parameters = {
        "encoder.weight": numbers(d_sae, D_MODEL, seed=1),
        "encoder.bias": numbers(d_sae, seed=2),
        "W_dec": numbers(d_sae, D_MODEL, seed=3),
        "b_dec": numbers(D_MODEL, seed=4),
    }
    save_file(parameters, folder / "sae.safetensors")
    return parameters


def sparse_coder(parameters):
    """SparseCoder.encode and decode, fused_encoder's activation "topk"."""

    def encode(x):
        x = x - parameters["b_dec"]
        pre_acts = torch.nn.functional.relu(
            torch.nn.functional.linear(
                x, parameters["encoder.weight"], parameters["encoder.bias"]
            )
        )
        top_acts, top_indices = pre_acts.topk(K, sorted=False)
        return torch.zeros_like(pre_acts).scatter(-1, top_indices, top_acts)

    return encode, lambda acts, x: acts @ parameters["W_dec"] + parameters["b_dec"]


@pytest.mark.parametrize("d_sae", [D_SAE, D_MODEL])
def test_a_sparse_coder_is_read(tmp_path, d_sae):
    folder = tmp_path / "layers.24"
    parameters = write(folder, d_sae)
    assert detect_format(folder) == "sparsify"
    loaded = load_foreign(folder)
    assert loaded.weights.k == K
    check_equal(loaded.weights, *sparse_coder(parameters))


@pytest.mark.parametrize(
    "option",
    [
        {"activation": "groupmax"},
        {"signed": True},
        {"transcode": True},
        {"skip_connection": True},
        {"k": 0},
        {"k": 2.5},
    ],
)
def test_other_kinds_are_refused(tmp_path, option):
    write(tmp_path, **option)
    with pytest.raises(UnsupportedSAEError, match=next(iter(option))):
        load_foreign(tmp_path)
