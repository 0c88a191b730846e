# SPDX-License-Identifier: Apache-2.0
"""The maths of a sparse autoencoder, and readers of foreign checkpoints."""

from vllm_sauce.sae.folding import fold_b_dec
from vllm_sauce.sae.normalization import NORMALIZATIONS
from vllm_sauce.sae.reconstruction import reconstruct
from vllm_sauce.sae.rows import with_rows, without_rows
from vllm_sauce.sae.sae_lens import from_sae_lens
from vllm_sauce.sae.weights import ARCHITECTURES, Row, SAEWeights

__all__ = [
    "ARCHITECTURES",
    "NORMALIZATIONS",
    "Row",
    "SAEWeights",
    "fold_b_dec",
    "from_sae_lens",
    "reconstruct",
    "with_rows",
    "without_rows",
]
