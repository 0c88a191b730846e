# SPDX-License-Identifier: Apache-2.0
"""How a wish to forget, and the mask it becomes, travel in a request."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

KEY = "sauce"
"""In ``extra_args``: the client's wish before admission, ``{"mask": …}`` after it."""


def means_us(key: object) -> bool:
    """Say whether a key of a request is meant for this plugin, however it is spelt.

    One that looks like ours must be understood or refused: ignored, it would be
    served unedited.
    """
    if not isinstance(key, str):
        return False
    # Other alphabets' look-alikes stay what they are; nobody types them by mistake.
    letters = _letters(unicodedata.normalize("NFKC", key).casefold())
    return KEY in letters or letters == "forget"


def has_sauce_keys(extra_args: Mapping[str, Any] | None) -> bool:
    """Tell whether a request speaks to this plugin at all."""
    return any(means_us(key) for key in extra_args or ())


def carry(
    extra_args: Mapping[str, Any] | None, mask: Mapping[str, object] | None
) -> dict[str, Any]:
    """Return extra arguments with admission's mark in the place of our raw keys.

    The mark holds a mask's wire form, or None: a plain request bears it, too, so that
    an engine knows one that went around admission.
    """
    kept = {k: v for k, v in (extra_args or {}).items() if not means_us(k)}
    return {**kept, KEY: {"mask": mask}}


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
