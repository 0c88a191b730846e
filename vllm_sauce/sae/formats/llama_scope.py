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

from typing import Final

import torch

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.config_keys import names
from vllm_sauce.sae.folding import fold_decoder_norm, fold_input_scale
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble, positive

LAYOUT = "hyperparams.json with jump_relu_threshold; encoder.weight, decoder.weight"

_NAMES = {
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
    "b_enc": "encoder.bias",
    "b_dec": "decoder.bias",
}

OPTIONS: Final[dict[str, tuple[object, ...]]] = {
    # lm_saes serves its TopK SAEs with the threshold too.
    "act_fn": ("jumprelu", "topk"),
    "norm_activation": ("dataset-wise", "inference"),
    "use_decoder_bias": (True,),
    "use_glu_encoder": (False,),
    "use_gau_encoder": (False,),
    "sparsity_include_decoder_norm": (True, False),
    "apply_decoder_bias_to_pre_encoder": (False, True),
    "sae_type": ("sae",),
}
"""Keys that change what the SAE computes, with the values that can be served."""

USED: Final = (
    "jump_relu_threshold",
    "dataset_average_activation_norm",
    "hook_point_in",
    "hook_point_out",
)
"""Other keys that do, with values of their own."""

INERT: Final = names(
    # The tensors have their own sizes and types.
    "d_model d_sae device dtype expansion_factor name promote_act_fn_dtype seed "
    # How it was trained.
    "bias_init_method ddp_size decoder_bias_init_method decoder_exactly_fixed_norm "
    "decoder_exactly_unit_norm force_unit_decoder_norm from_pretrained_path "
    "geometric_median_max_iter init_decoder_norm init_encoder_norm "
    "init_encoder_with_decoder_transpose initial_k jumprelu_threshold_grad_scale "
    "jumprelu_threshold_window k_warmup_steps l1_coefficient "
    "l1_coefficient_warmup_steps lp remove_gradient_parallel_to_decoder_directions "
    "top_k tp_size use_batch_norm_mse use_ghost_grads "
    # How it is loaded, and multiplied where most numbers are 0.
    "circuit_tracing_mode sae_from_pretrained_path sae_pretrained_name_or_path "
    "sparsity_threshold_for_csr sparsity_threshold_for_triton_spmm_kernel "
    "strict_loading use_triton_kernel"
)
"""Keys that change nothing of it: those of lm_saes' classes of SAEs."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether lm_saes saved this."""
    return (
        checkpoint.path.suffix == ".safetensors"
        and set(_NAMES.values()) - {"decoder.bias"} <= checkpoint.names()
        and {"jump_relu_threshold", "norm_activation"} & set(checkpoint.config) != set()
    )


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE with its decoder norms and its input's scale folded."""
    config = checkpoint.config
    checkpoint.check_config(OPTIONS, used=USED, inert=INERT)
    checkpoint.check_names(_NAMES.values())
    if config.get("hook_point_in") != config.get("hook_point_out"):
        raise UnsupportedSAEError(
            f"{checkpoint.config_path} describes a transcoder from "
            f"{config.get('hook_point_in')} to {config.get('hook_point_out')}"
        )
    threshold = positive(config.get("jump_relu_threshold"), "jump_relu_threshold")
    tensors = checkpoint.pick(**_NAMES)
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
        sae = fold_decoder_norm(sae)
        folded.append("decoder norms into the encoder")
    if scale != 1:
        sae = fold_input_scale(sae, scale)
        folded.append(f"input scale {scale:.4g} into the weights")
    return sae, tuple(folded)


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
