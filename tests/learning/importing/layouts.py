# SPDX-License-Identifier: Apache-2.0
"""sauce-tiny's own SAEs, exported to the layouts of foreign formats."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from safetensors.torch import save_file

from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.sae import SAEWeights, fold_b_dec

MODEL, PICTURES = TINY / "model", TINY / "pictures"
QUESTIONS = ("what is in the picture?", "what colour is it?", "is there a dog?")
K = 64


@cache
def shipped(site) -> SAEWeights:
    """Return the SAE of the bundle of latents: ReLU, b_dec subtracted."""
    return Bundle.load(TINY / "latents").sites[site].weights


def unsubtracted(sae) -> SAEWeights:
    """Return the same SAE with b_dec's subtraction folded away."""
    if not sae.apply_b_dec_to_input:
        return sae
    b_enc = fold_b_dec(sae.W_enc, sae.b_enc, sae.b_dec)
    return replace(sae, b_enc=b_enc, apply_b_dec_to_input=False)


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def _turned(matrix):
    return matrix.T.contiguous()


def sae_lens(folder, sae):
    config = {
        "architecture": "standard",
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": "none",
    }
    write_json(folder / "cfg.json", config)
    save_file(sae.tensors(), folder / "sae_weights.safetensors")
    return folder


def gemma_scope(folder, sae):
    """JumpReLU with a threshold of 0 is ReLU."""
    sae = unsubtracted(sae)
    folder.mkdir()
    arrays = {name: tensor.numpy() for name, tensor in sae.tensors().items()}
    threshold = np.zeros(sae.d_sae, dtype=np.float32)
    np.savez(folder / "params.npz", **arrays, threshold=threshold)
    return folder


def sparsify(folder, sae):
    write_json(folder / "cfg.json", {"d_in": sae.d_model, "k": K, "num_latents": 0})
    parameters = {
        "encoder.weight": _turned(sae.W_enc),
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    save_file(parameters, folder / "sae.safetensors")
    return folder


def qwen_scope(folder, sae):
    sae = unsubtracted(sae)
    folder = folder / f"W2K-L0_{K}"
    folder.mkdir(parents=True)
    turned = {"W_enc": _turned(sae.W_enc), "W_dec": _turned(sae.W_dec)}
    torch.save({**sae.tensors(), **turned}, folder / "layer1.sae.pt")
    return folder / "layer1.sae.pt"


def openai(folder, sae):
    folder.mkdir()
    state = {
        "pre_bias": sae.b_dec,
        "latent_bias": sae.b_enc,
        "encoder.weight": _turned(sae.W_enc),
        "decoder.weight": _turned(sae.W_dec),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    torch.save(state, folder / "sae.pt")
    return folder


def dictionary_learning(folder, sae):
    """Matryoshka, as sae-for-vlm has it."""
    sizes = torch.tensor([sae.d_sae // 2, sae.d_sae - sae.d_sae // 2])
    more = {"k": torch.tensor(K), "threshold": torch.tensor(0.0), "group_sizes": sizes}
    folder.mkdir()
    torch.save({**sae.tensors(), **more}, folder / "ae.pt")
    return folder


def llama_scope(folder, sae):
    """As trained: inputs scaled to norm sqrt(d_model), decoder rows of any norm."""
    sae, norm = unsubtracted(sae), 40.0
    scale = sae.d_model**0.5 / norm
    rows = torch.linspace(0.5, 2.0, sae.d_sae)
    config = {
        "act_fn": "jumprelu",
        # In the units of the unscaled activation.
        "jump_relu_threshold": 1e-6,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "sparsity_include_decoder_norm": True,
    }
    write_json(folder / "hyperparams.json", config)
    parameters = {
        "encoder.weight": _turned(sae.W_enc / rows),
        "encoder.bias": sae.b_enc * scale / rows,
        "decoder.weight": _turned(sae.W_dec * rows[:, None]),
        "decoder.bias": sae.b_dec * scale,
    }
    (folder / "checkpoints").mkdir()
    save_file(parameters, folder / "checkpoints" / "final.safetensors")
    return folder


LAYOUTS = {
    writer.__name__: writer
    for writer in (
        dictionary_learning,
        gemma_scope,
        llama_scope,
        openai,
        qwen_scope,
        sae_lens,
        sparsify,
    )
}
