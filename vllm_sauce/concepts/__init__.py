# SPDX-License-Identifier: Apache-2.0
"""Which latents carry a concept; what ranks them is in ``scores``."""

from vllm_sauce.concepts.catalogue import (
    FORGET_FLOOR,
    TRIAL,
    Catalogue,
    Concept,
    SiteEdit,
)
from vllm_sauce.concepts.site import (
    IMAGE,
    OF_TEXT,
    SINK,
    SPARING,
    TOKENS,
    VISION,
    check_site,
    decoder_layer_idx,
    is_vision,
)

__all__ = [
    "FORGET_FLOOR",
    "IMAGE",
    "OF_TEXT",
    "SINK",
    "SPARING",
    "TOKENS",
    "TRIAL",
    "VISION",
    "Catalogue",
    "Concept",
    "SiteEdit",
    "check_site",
    "decoder_layer_idx",
    "is_vision",
]
