# SPDX-License-Identifier: Apache-2.0
"""Names of the places where an SAE can sit."""

from __future__ import annotations

import re

from vllm_sauce.errors import ConfigError

VISION = "vision"
"""What the vision tower leaves, where it enters the connector to the language model.
A model that hands on several layers of its tower has ``vision.1``, ``vision.2``, … too.
"""

SINK, IMAGE, PROMPT, GENERATED = TOKENS = ("sink", "image", "prompt", "generated")
"""Kinds of tokens. The sink is position 0, where models put attention that has nowhere
to go: its norm dwarfs all others, and whoever edits it changes every answer."""
SPARING = (IMAGE, PROMPT, GENERATED)
"""What an edit acts on unless it says otherwise."""
OF_TEXT = (PROMPT, GENERATED)
"""What is no picture's, and not the sink."""

_BRANCH = re.compile(rf"{VISION}(\.[1-9][0-9]{{0,2}})?")
_DECODER = re.compile(r"decoder\.(0|[1-9][0-9]{0,5})")


def check_site(site: str) -> str:
    """Return ``site`` if it is a site's name. Raises: ConfigError"""
    if not _BRANCH.fullmatch(site) and not _DECODER.fullmatch(site):
        raise ConfigError(
            "a site is 'vision' or 'decoder.<layer>', and of models that hand on "
            f"several layers of their tower 'vision.<branch>'; got {site!r}"
        )
    return site


def is_vision(site: str) -> bool:
    """Say whether a site is at the vision tower."""
    return site.partition(".")[0] == VISION


def decoder_layer_idx(site: str) -> int | None:
    """Return the decoder layer a site sits behind, or None for a vision site.

    Raises: ConfigError
    """
    match = _DECODER.fullmatch(check_site(site))
    return int(match[1]) if match else None
