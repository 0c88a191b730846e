# SPDX-License-Identifier: Apache-2.0
"""Names of the places where an SAE can sit."""

from __future__ import annotations

import re

from vllm_sauce.errors import ConfigError

VISION = "vision"
"""Output of the vision tower, input of the projector."""

SINK, IMAGE, PROMPT, GENERATED = TOKENS = ("sink", "image", "prompt", "generated")
"""Kinds of tokens. The sink is position 0, where models put attention that has nowhere
to go: its norm dwarfs all others, and whoever edits it changes every answer."""
SPARING = (IMAGE, PROMPT, GENERATED)
"""What an edit acts on unless it says otherwise."""

_DECODER = re.compile(r"decoder\.(0|[1-9][0-9]{0,5})")


def check_site(site: str) -> str:
    """Return ``site`` if it is a site's name. Raises: ConfigError"""
    if site != VISION and not _DECODER.fullmatch(site):
        raise ConfigError(f"a site is 'vision' or 'decoder.<layer>', got {site!r}")
    return site


def decoder_layer_idx(site: str) -> int | None:
    """Return the decoder layer a site sits behind, or None for the vision site.

    Raises: ConfigError
    """
    match = _DECODER.fullmatch(check_site(site))
    return int(match[1]) if match else None
