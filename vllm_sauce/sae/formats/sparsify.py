# SPDX-License-Identifier: Apache-2.0
"""EleutherAI's sparsify: per-token TopK, for example LLaVA-NeXT's public SAEs.

``z = topk(relu((x - b_dec) encoder.weight^T + encoder.bias))``, decoded with W_dec,
which has encoder.weight's shape. SAELens' own reader of this format transposes W_dec
and subtracts b_dec only if ``normalize_decoder`` is false; sparsify itself does
neither, and is followed here.

Source: github.com/EleutherAI/sparsify, sparsify/sparse_coder.py, fused_encoder.py
"""

from __future__ import annotations

from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import (
    ForeignSAE,
    LoadOptions,
    assemble,
    pick,
    refuse,
    whole_k,
)

LAYOUT = "cfg.json with d_in, k; sae.safetensors with encoder.weight, W_dec"
_NAMES = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether sparsify saved this."""
    return (
        checkpoint.path.suffix == ".safetensors"
        and checkpoint.names() >= _NAMES
        and {"d_in", "k"} <= set(checkpoint.config)
    )


def load(checkpoint: Checkpoint, options: LoadOptions) -> ForeignSAE:
    """Return the SAE; nothing needs folding.

    Raises: UnsupportedSAEError for groupmax, signed activations and transcoders
    """
    refuse(
        checkpoint,
        {
            "activation": ("topk",),
            "signed": (False,),
            "skip_connection": (False,),
            "embed_skip": (False,),
            "gram_lookup": (False,),
            "transcode": (False,),
        },
    )
    names = {
        "W_enc": "encoder.weight",
        "b_enc": "encoder.bias",
        "b_dec": "b_dec",
    }
    tensors = pick(checkpoint, **names, W_dec="W_dec")
    # Only the encoder is transposed; where shapes cannot tell, this can.
    tensors["W_dec"] = tensors["W_dec"].T
    source = str(checkpoint.config_path or checkpoint.path)
    weights = assemble(
        tensors,
        stored=True,
        architecture="topk",
        k=options.k or whole_k(checkpoint.config.get("k"), source),
    )
    return ForeignSAE(format="sparsify", weights=weights)
