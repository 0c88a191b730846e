# SPDX-License-Identifier: Apache-2.0
"""Request to mask to slots to tensors; knows nothing of vLLM.

What needs torch is imported from ``slots``: an API process resolves masks without it.
"""

from vllm_sauce.unlearning.mask import (
    Mask,
    check_mandatory,
    check_size,
    resolve_mask,
    without_decoder,
)

__all__ = [
    "Mask",
    "check_mandatory",
    "check_size",
    "resolve_mask",
    "without_decoder",
]
