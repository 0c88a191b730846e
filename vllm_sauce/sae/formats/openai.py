# SPDX-License-Identifier: Apache-2.0
"""OpenAI's sparse_autoencoder: a state dict with the activation's name beside it.

``z = act((n - pre_bias) encoder.weight^T + latent_bias)``. TopK models normalise every
token (``n`` has mean 0 and unbiased deviation 1) and undo it after decoding; ReLU ones
do not.

Source: github.com/openai/sparse_autoencoder, sparse_autoencoder/model.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.config_keys import names
from vllm_sauce.sae.formats.checkpoint import PICKLES, Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble, whole_k

LAYOUT = ".pt with pre_bias, latent_bias, encoder.weight, decoder.weight, activation"

_NEEDED = frozenset({"pre_bias", "latent_bias", "encoder.weight"})
_USED = _NEEDED | {"decoder.weight", "activation", "activation_state_dict"}

INERT: Final = names(
    # A tied decoder is the encoder; the rest was counted in training.
    "decoder.linear.weight latents_activation_frequency latents_mean_square "
    "stats_last_nonzero"
)
"""Names in the file that change nothing of what the SAE computes."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether OpenAI's Autoencoder saved this."""
    return checkpoint.path.suffix in PICKLES and checkpoint.names() >= _NEEDED


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE; tied weights are written out."""
    checkpoint.check_config({})  # the format has no JSON
    checkpoint.check_names(_USED | INERT)
    tied = "decoder.weight" not in checkpoint.tensors
    tensors = checkpoint.pick(
        W_enc="encoder.weight",
        W_dec="encoder.weight" if tied else "decoder.weight",
        b_enc="latent_bias",
        b_dec="pre_bias",
    )
    if tied:
        tensors["W_dec"] = tensors["W_dec"].T
    activation = checkpoint.extras.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise UnsupportedSAEError(
            f"{checkpoint.path}: activation must be ReLU or TopK, got {activation!r}"
        )
    state = checkpoint.extras.get("activation_state_dict", {})
    topk = activation == "TopK"
    known = {"k", "postact_fn"} if topk else set()
    if not isinstance(state, dict) or set(state) - known:
        raise UnsupportedSAEError(
            f"{checkpoint.path}: {activation} cannot have {state!r} as its state"
        )
    weights = assemble(
        tensors,
        stored=True,
        architecture="topk" if topk else "standard",
        k=options.k or _k_of(state, checkpoint) if topk else None,
        normalize_activations="layer_norm" if topk else "none",
    )
    return weights, ("tied weights written out",) if tied else ()


def _k_of(state: Mapping[str, object], checkpoint: Checkpoint) -> int:
    if state.get("postact_fn", "ReLU") != "ReLU":
        raise UnsupportedSAEError(
            f"{checkpoint.path}: TopK needs k and postact_fn 'ReLU', got {state!r}"
        )
    return whole_k(state.get("k"), str(checkpoint.path))
