# SPDX-License-Identifier: Apache-2.0
"""Gemma Scope 1 (``params.npz``) and 2 (``params.safetensors``): JumpReLU SAEs.

``z = relu(x w_enc + b_enc)`` where the pre-activation exceeds the latent's threshold;
b_dec is not subtracted on the way in. Both matrices are stored as we keep them.

Source: google/gemma-scope-2b-pt-res and google/gemma-scope-2-4b-it on the hub;
github.com/jbloomAus/SAELens, sae_lens/loading/pretrained_sae_loaders.py
"""

from __future__ import annotations

from typing import Final

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble

LAYOUT = "params.npz or params.safetensors with w_enc, w_dec, b_enc, b_dec, threshold"
_LOWER = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
_UPPER = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")

OPTIONS: Final[dict[str, tuple[object, ...]]] = {
    "architecture": ("jump_relu",),
    "type": ("sae",),
    "affine_connection": (False,),
}
"""Keys that change what the SAE computes, with the values that can be served."""

INERT: Final = frozenset(("width", "model_name", "l0"))
"""Keys that change nothing of it."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether this is a Gemma Scope SAE, or a transcoder beside them."""
    names, suffix = checkpoint.names(), checkpoint.path.suffix
    if suffix == ".npz":
        return names >= set(_UPPER) or names >= set(_LOWER)
    return suffix == ".safetensors" and names >= set(_LOWER)


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE; nothing needs folding."""
    hooks = ("hf_hook_point_in", "hf_hook_point_out")
    checkpoint.check_config(OPTIONS, used=hooks, inert=INERT)
    checkpoint.check_names((*_LOWER, *_UPPER))
    hook_in, hook_out = map(checkpoint.config.get, hooks)
    if hook_out not in (None, hook_in):
        raise UnsupportedSAEError(
            f"{checkpoint.config_path} describes a transcoder from {hook_in} to "
            f"{hook_out}"
        )
    found = _LOWER if "w_enc" in checkpoint.tensors else _UPPER
    tensors = checkpoint.pick(**dict(zip(_UPPER, found, strict=True)))
    weights = assemble(
        tensors,
        stored=False,
        architecture="jumprelu",
        threshold=tensors["threshold"],
        apply_b_dec_to_input=False,
    )
    return weights, ()
