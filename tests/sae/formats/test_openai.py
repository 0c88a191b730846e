# SPDX-License-Identifier: Apache-2.0
"""The Autoencoder of openai/sparse_autoencoder, written out, is the oracle."""

from collections import OrderedDict

import pytest
import torch
from torch.nn.functional import linear, relu

from tests.sae.formats.oracle import D_MODEL, D_SAE, check_equal, detect_format, numbers
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import load_foreign

K = 5


def write(file, activation, tied=False, postact_fn="ReLU"):
    encoder = numbers(D_SAE, D_MODEL, seed=1)
    state = OrderedDict(
        {
            "pre_bias": numbers(D_MODEL, seed=2),
            "latent_bias": numbers(D_SAE, seed=3),
            "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
            "latents_activation_frequency": torch.ones(D_SAE),
            "latents_mean_square": torch.zeros(D_SAE),
            "encoder.weight": encoder,
            "activation": activation,
            "activation_state_dict": OrderedDict(),
        }
    )
    name = "decoder.linear.weight" if tied else "decoder.weight"
    state[name] = encoder if tied else numbers(D_MODEL, D_SAE, seed=4)
    if activation == "TopK":
        state["activation_state_dict"].update(k=K, postact_fn=postact_fn)
    torch.save(state, file)
    return state


def autoencoder(state):
    """Autoencoder.encode and decode; TopK means that inputs are normalised."""
    topk = state["activation"] == "TopK"
    decoder = state.get("decoder.weight", state["encoder.weight"].T)

    def preprocess(x):
        if not topk:
            return x, torch.zeros(()), torch.ones(())
        mu = x.mean(dim=-1, keepdim=True)
        x = x - mu
        std = x.std(dim=-1, keepdim=True)
        return x / (std + 1e-5), mu, std

    def encode(x):
        x, _, _ = preprocess(x)
        pre = linear(x - state["pre_bias"], state["encoder.weight"])
        pre = pre + state["latent_bias"]
        if not topk:
            return relu(pre)
        top = torch.topk(pre, k=K, dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, relu(top.values))

    def decode(acts, x):
        _, mu, std = preprocess(x)
        return (linear(acts, decoder) + state["pre_bias"]) * std + mu

    return encode, decode


@pytest.mark.parametrize("activation", ["ReLU", "TopK"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_autoencoder_is_read(tmp_path, activation, tied):
    state = write(tmp_path / "sae.pt", activation, tied)
    assert detect_format(tmp_path / "sae.pt") == "openai"
    loaded = load_foreign(tmp_path / "sae.pt")
    check_equal(loaded.weights, *autoencoder(state))
    assert bool(loaded.folded) == tied


def test_other_activations_are_refused(tmp_path):
    write(tmp_path / "a.pt", "Identity")
    with pytest.raises(UnsupportedSAEError, match="Identity"):
        load_foreign(tmp_path / "a.pt")
    write(tmp_path / "b.pt", "TopK", postact_fn="Identity")
    with pytest.raises(UnsupportedSAEError, match="postact_fn"):
        load_foreign(tmp_path / "b.pt")
