# SPDX-License-Identifier: Apache-2.0
"""SAELens' folders, of any version, read as ``vllm_sauce.sae.sae_lens`` does.

Source: github.com/jbloomAus/SAELens, sae_lens/saes/sae.py (``SAE.save_model``)
"""

from __future__ import annotations

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats.checkpoint import Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, plain
from vllm_sauce.sae.sae_lens import CONFIG_FILE, WEIGHTS_FILE, folded_sae
from vllm_sauce.sae.sae_lens_config import has_factor

LAYOUT = f"{CONFIG_FILE} with d_in, d_sae; {WEIGHTS_FILE} with W_enc, W_dec, b_dec"


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether SAELens saved this."""
    return (
        checkpoint.path.suffix == ".safetensors"
        and {"W_enc", "W_dec", "b_dec"} <= checkpoint.names()
        # Before version 3 none said its architecture.
        and {"d_in", "d_sae"} <= set(checkpoint.config)
    )


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE; a gated one becomes the jumprelu it is."""
    if checkpoint.path.name != WEIGHTS_FILE:
        raise UnsupportedSAEError(
            f"SAELens calls the file {WEIGHTS_FILE}, got {checkpoint.path.name}"
        )
    cfg = dict(checkpoint.config)
    if options.factor_folded:
        if not has_factor(cfg):
            raise UnsupportedSAEError(
                f"{checkpoint.config_path} says of no factor that it could be folded: "
                "leave out --factor-folded"
            )
        cfg["normalize_activations"] = "none"
    sae, folded = folded_sae(cfg, checkpoint.config_path, dict(checkpoint.tensors))
    if options.factor_folded:
        folded += ("the input's factor, as --factor-folded says",)
    return plain(sae), folded
