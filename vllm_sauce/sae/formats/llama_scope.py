# SPDX-License-Identifier: Apache-2.0
"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``.

With ``s = sqrt(d_model) / average norm``: ``hidden = (s x) encoder.weight^T + bias``, a
latent is active where ``hidden * |decoder column|`` exceeds the threshold, and the
decoded activation is divided by s. The threshold is stored in the units of the
unscaled activation, as lm_saes uses it after ``standardize_parameters_of_dataset_norm``
(public files agree: threshold * s is near 2 in every layer), so it is multiplied by s.

Source: github.com/OpenMOSS/Language-Model-SAEs, src/lm_saes/sae.py, initializer.py;
github.com/jbloomAus/SAELens, sae_lens/loading/pretrained_sae_loaders.py
"""

from __future__ import annotations

from dataclasses import replace

import torch

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.folding import fold_decoder_norm, fold_input_scale
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import (
    ForeignSAE,
    LoadOptions,
    assemble,
    pick,
    positive,
    refuse,
)

LAYOUT = "hyperparams.json with jump_relu_threshold; encoder.weight, decoder.weight"


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether lm_saes saved this."""
    return (
        checkpoint.path.suffix == ".safetensors"
        and {"encoder.weight", "encoder.bias", "decoder.weight"} <= checkpoint.names()
        and {"jump_relu_threshold", "norm_activation"} & set(checkpoint.config) != set()
    )


def load(checkpoint: Checkpoint, options: LoadOptions) -> ForeignSAE:
    """Return the SAE with its decoder norms and its input's scale folded.

    Raises: UnsupportedSAEError
    """
    _check_options(checkpoint)
    config = checkpoint.config
    threshold = positive(config.get("jump_relu_threshold"), "jump_relu_threshold")
    names = {
        "W_enc": "encoder.weight",
        "W_dec": "decoder.weight",
        "b_enc": "encoder.bias",
        "b_dec": "decoder.bias",
    }
    tensors = pick(checkpoint, **names)
    scale = _scale(checkpoint)
    sae = assemble(
        tensors,
        stored=True,
        architecture="jumprelu",
        threshold=torch.tensor(threshold * scale),
        apply_b_dec_to_input=config.get("apply_decoder_bias_to_pre_encoder") is True,
    )
    folded = [f"one threshold, {threshold:g}, for every latent"]
    if config.get("sparsity_include_decoder_norm", True):
        W_enc, b_enc, W_dec = fold_decoder_norm(sae.W_enc, sae.b_enc, sae.W_dec)
        sae = replace(sae, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec)
        folded.append("decoder norms into the encoder")
    if scale != 1:
        W_enc, W_dec, b_dec = fold_input_scale(sae.W_enc, sae.W_dec, sae.b_dec, scale)
        sae = replace(sae, W_enc=W_enc, W_dec=W_dec, b_dec=b_dec)
        folded.append(f"input scale {scale:.4g} into the weights")
    return ForeignSAE(format="llama_scope", weights=sae, folded=tuple(folded))


def _check_options(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    allowed = {
        # lm_saes serves its TopK SAEs with the threshold too.
        "act_fn": ("jumprelu", "topk"),
        "norm_activation": ("dataset-wise", "inference"),
        "use_decoder_bias": (True,),
        "use_glu_encoder": (False,),
        "sparsity_include_decoder_norm": (True, False),
        "apply_decoder_bias_to_pre_encoder": (False, True),
    }
    refuse(checkpoint, allowed)
    if config.get("hook_point_in") != config.get("hook_point_out"):
        raise UnsupportedSAEError(
            f"{checkpoint.config_path} describes a transcoder from "
            f"{config.get('hook_point_in')} to {config.get('hook_point_out')}"
        )


def _scale(checkpoint: Checkpoint) -> float:
    if checkpoint.config.get("norm_activation", "dataset-wise") == "inference":
        return 1.0
    norms = checkpoint.config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict) or norms.get("in") != norms.get("out"):
        raise UnsupportedSAEError(
            f"{checkpoint.config_path}: dataset_average_activation_norm must give one "
            f"number as in and as out, got {norms!r}"
        )
    norm = positive(norms.get("in"), "dataset_average_activation_norm")
    return float(len(checkpoint.tensors["decoder.bias"]) ** 0.5) / norm
