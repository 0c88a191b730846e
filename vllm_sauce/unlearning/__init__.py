# SPDX-License-Identifier: Apache-2.0
"""Request to mask to slots to tensors; knows nothing of vLLM.

``SiteTable`` is imported when first used, so that an API process can resolve masks
without torch.
"""

from typing import TYPE_CHECKING

from vllm_sauce.unlearning.edits import MaskRows, site_rows
from vllm_sauce.unlearning.mask import (
    Mask,
    admitted_mask,
    check_mandatory,
    check_size,
    resolve_mask,
    without_decoder,
)
from vllm_sauce.unlearning.request import ForgetRequest, parse_request

if TYPE_CHECKING:
    from vllm_sauce.unlearning.slots import SiteTable

__all__ = [
    "ForgetRequest",
    "Mask",
    "MaskRows",
    "SiteTable",
    "admitted_mask",
    "check_mandatory",
    "check_size",
    "parse_request",
    "resolve_mask",
    "site_rows",
    "without_decoder",
]


def __getattr__(name: str) -> object:
    if name == "SiteTable":
        from vllm_sauce.unlearning.slots import SiteTable

        return SiteTable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
