# SPDX-License-Identifier: Apache-2.0
"""Qwen-Scope: ``layer<i>.sae.pt``, per-token TopK.

``z = topk(x W_enc^T + b_enc)``; b_dec is not subtracted on the way in. Both matrices
are stored transposed. The file has no k: it is in the repository's config.json and name
(``L0_50``).

Source: model card of Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_50;
github.com/jbloomAus/SAELens, sae_lens/loading/pretrained_sae_loaders.py
"""

from __future__ import annotations

import re
from typing import Final

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.config_keys import names
from vllm_sauce.sae.formats.checkpoint import PICKLES, Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble, whole_k

LAYOUT = "layer<i>.sae.pt with W_enc [d_sae, d_model], W_dec, b_enc, b_dec"
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")

OPTIONS: Final[dict[str, tuple[object, ...]]] = {"model_type": ("topk_sae",)}
"""Keys that change what the SAE computes, with the values that can be served."""

INERT: Final = names("base_model d_model d_sae dtype hook_point num_layers")
"""Keys that change nothing of it."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether this is a Qwen-Scope file."""
    return checkpoint.path.suffix in PICKLES and checkpoint.names() == set(_NAMES)


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE; nothing needs folding."""
    checkpoint.check_config(OPTIONS, used=("k",), inert=INERT)
    k = options.k or _k_of(checkpoint, options)
    weights = assemble(
        checkpoint.pick(**{name: name for name in _NAMES}),
        stored=True,
        architecture="topk",
        k=k,
        apply_b_dec_to_input=False,
    )
    return weights, ()


def _k_of(checkpoint: Checkpoint, options: LoadOptions) -> int:
    if "k" in checkpoint.config:
        return whole_k(checkpoint.config["k"], str(checkpoint.config_path))
    k = _k_in(options.name) or _k_in(str(checkpoint.path))
    if k is None:
        raise UnsupportedSAEError(
            f"{checkpoint.path} does not hold k, and neither a config.json nor a name "
            "says it (L0_<k>); give it with --k"
        )
    return k


def _k_in(name: str) -> int | None:
    found = re.search(r"L0_([1-9]\d*)", name)
    return int(found[1]) if found else None
