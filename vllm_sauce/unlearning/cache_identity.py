# SPDX-License-Identifier: Apache-2.0
"""Names under which caches keep what was computed under a mask.

KV blocks are keyed by the request's salt, encoder outputs by the image's identifier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.unlearning.mask import Mask

PREFIX = "sauce:"
"""Begins every cache key of a masked request; no client may use it."""


def salted(salt: str | None, mask: Mask) -> str:
    """Return the salt of a masked request's first KV block, and so of its chain."""
    return f"{PREFIX}{mask.mask_id}" + (f":{salt}" if salt else "")


def renamed(identifier: str, mask: Mask) -> str:
    """Return the identifier of an image that is encoded under a mask."""
    return f"{PREFIX}{mask.mask_id}:{identifier}"


def mask_id_of(identifier: str) -> str | None:
    """Return the id of the mask in an image's identifier, None for a plain one."""
    if not identifier.startswith(PREFIX):
        return None
    return identifier[len(PREFIX) :].partition(":")[0]


def refuse_forged_keys(salt: str | None, uuids: Iterable[Any]) -> None:
    """Refuse a client's cache keys that look like ours.

    With them a plain request could read, or poison, the blocks of a masked one.

    Raises: InvalidRequestError.
    """
    if (salt or "").startswith(PREFIX):
        raise InvalidRequestError(
            f"cache_salt must not begin with {PREFIX!r}, which vllm-sauce reserves; "
            "choose another salt"
        )
    if any(isinstance(uuid, str) and uuid.startswith(PREFIX) for uuid in uuids):
        raise InvalidRequestError(
            f"an image's uuid must not begin with {PREFIX!r}, which vllm-sauce "
            "reserves; choose another uuid"
        )
