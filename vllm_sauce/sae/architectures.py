# SPDX-License-Identifier: Apache-2.0
"""The kinds of SAE that can be served exactly."""

from __future__ import annotations

from vllm_sauce.errors import UnsupportedSAEError

ARCHITECTURES = ("jumprelu", "standard", "topk")
"""Those of "topk" depend on each other: serving one needs the whole encoder."""


def check_architecture(name: str) -> str:
    """Return ``name`` if SAEs of this kind can be served.

    Raises: UnsupportedSAEError
    """
    if name not in ARCHITECTURES:
        raise UnsupportedSAEError(
            f"SAE architecture must be one of {', '.join(ARCHITECTURES)}, "
            f"got {name!r}; "
            "gated, BatchTopK and Matryoshka SAEs can be saved as jumprelu"
        )
    return name
