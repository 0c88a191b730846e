# SPDX-License-Identifier: Apache-2.0
"""EleutherAI's sparsify: per-token TopK, for example LLaVA-NeXT's public SAEs.

``z = topk(relu((x - b_dec) encoder.weight^T + encoder.bias))``, decoded with W_dec,
which has encoder.weight's shape. SAELens' own reader of this format transposes W_dec
and subtracts b_dec only if ``normalize_decoder`` is false; sparsify itself does
neither, and is followed here.

Source: github.com/EleutherAI/sparsify, sparsify/{config,sparse_coder,fused_encoder}.py
"""

from __future__ import annotations

from typing import Final

from vllm_sauce.sae.config_keys import names
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble, whole_k

LAYOUT = "cfg.json with d_in, k; sae.safetensors with encoder.weight, W_dec"
_NAMES = {
    "W_enc": "encoder.weight",
    "W_dec": "W_dec",
    "b_enc": "encoder.bias",
    "b_dec": "b_dec",
}

OPTIONS: Final[dict[str, tuple[object, ...]]] = {
    "activation": ("topk",),
    "signed": (False,),
    "skip_connection": (False,),
    "embed_skip": (False,),
    "gram_lookup": (False,),
    "transcode": (False,),
    # Of forks.
    "batch_topk": (False,),
    "sample_topk": (False,),
    "input_unit_norm": (False,),
}
"""Keys that change what the SAE computes, with the values that can be served."""

INERT: Final = names(
    # How it was trained; the tensors have their own sizes.
    "d_in expansion_factor hook_layer hook_name multi_topk normalize_decoder "
    "num_latents"
)
"""Keys that change nothing of it."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether sparsify saved this."""
    return (
        checkpoint.path.suffix == ".safetensors"
        and checkpoint.names() >= set(_NAMES.values())
        and {"d_in", "k"} <= set(checkpoint.config)
    )


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE; nothing needs folding."""
    checkpoint.check_config(OPTIONS, used=("k",), inert=INERT)
    checkpoint.check_names(_NAMES.values())
    tensors = checkpoint.pick(**_NAMES)
    # Only the encoder is transposed; where shapes cannot tell, this can.
    tensors["W_dec"] = tensors["W_dec"].T
    source = str(checkpoint.config_path or checkpoint.path)
    weights = assemble(
        tensors,
        stored=True,
        architecture="topk",
        k=options.k or whole_k(checkpoint.config.get("k"), source),
    )
    return weights, ()
