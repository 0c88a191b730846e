# SPDX-License-Identifier: Apache-2.0
"""What a client writes to make one request forget, and how it is read."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_sauce.errors import ConfigError, InvalidRequestError, InvalidStrengthError

MAX_STRENGTH = 10.0
"""Largest strength a request may ask for; 1.0 is the catalogue's calibrated edit."""

KEY = "sauce"
"""In ``extra_args``: the client's wish before admission, its mark after it."""

_FIELDS = ("forget", "profile", "strength")
_FLAT = tuple(f"sauce_{name}" for name in _FIELDS)

plugin_registered = False
"""True once vLLM has run ``vllm_sauce.plugin.register`` in this process."""


def forget(*concepts: str, strength: float = 1.0) -> dict[str, object]:
    """Return ``SamplingParams.extra_args`` that make a request forget concepts.

    Raises: InvalidRequestError, InvalidStrengthError, ConfigError where vLLM runs
        without the plugin
    """
    _refuse_without_plugin()
    names, amount = _checked(concepts, strength)
    return {"sauce": {"forget": names, "strength": amount}}


def forget_body(*concepts: str, strength: float = 1.0) -> dict[str, object]:
    """Return the OpenAI client's ``extra_body`` that makes a request forget concepts.

    The server that it is sent to has a plugin of its own, whatever runs here.

    Raises: InvalidRequestError, InvalidStrengthError
    """
    names, amount = _checked(concepts, strength)
    # vLLM's vllm_xargs holds scalars and lists only, so the form is flat.
    return {"vllm_xargs": {"sauce_forget": names, "sauce_strength": amount}}


def check_strength(strength: object) -> float:
    """Return strength as a float in [0, MAX_STRENGTH].

    Raises: InvalidStrengthError
    """
    # bool is an int in Python; true as a strength is a client's mistake.
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise InvalidStrengthError(
            f"strength must be a number in 0..{MAX_STRENGTH:g}, "
            f"got {type(strength).__name__}"
        )
    if not 0 <= strength <= MAX_STRENGTH or not math.isfinite(strength):
        raise InvalidStrengthError(
            f"strength must be in 0..{MAX_STRENGTH:g}, got {_number(strength)}; "
            "1.0 is the catalogue's calibrated edit"
        )
    return float(strength)


def means_us(key: object) -> bool:
    """Say whether a key of a request is meant for this plugin, however it is spelt.

    One that looks like ours must be understood or refused: ignored, it would be
    served unedited.
    """
    if not isinstance(key, str):
        return False
    # Other alphabets' look-alikes stay what they are; nobody types them by mistake.
    text = unicodedata.normalize("NFKC", key).casefold()
    letters = "".join(filter(str.isalnum, text))
    return KEY in letters or letters == "forget"


def has_sauce_keys(extra_args: Mapping[str, Any] | None) -> bool:
    """Tell whether a request speaks to this plugin at all."""
    return any(means_us(key) for key in extra_args or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRequest:
    """A well-formed wish to forget; names are not yet checked against a catalogue."""

    forget: tuple[str, ...]
    """Names of concepts, as the request gave them."""

    strength: float = 1.0
    """Factor on the catalogue's edits, 0..10."""


def parse_request(extra_args: Mapping[str, object] | None) -> ForgetRequest | None:
    """Return what extra arguments ask to forget, or None if they do not mention us.

    Raises: InvalidRequestError, InvalidStrengthError
    """
    if not extra_args:
        return None
    ours = {key: value for key, value in extra_args.items() if means_us(key)}
    if not ours:
        return None
    unknown = sorted(key for key in ours if key != KEY and key not in _FLAT)
    if unknown:
        raise InvalidRequestError(
            f"unknown key {_short(unknown[0])}; known: sauce, {', '.join(_FLAT)}"
        )
    if "sauce" not in ours:
        return _request({key.removeprefix("sauce_"): ours[key] for key in ours})
    if len(ours) > 1:
        raise InvalidRequestError(
            "give either 'sauce' or the 'sauce_...' keys, not both forms"
        )
    return _request(_nested(ours["sauce"]))


def _refuse_without_plugin() -> None:
    """Say so where vLLM is in this process, but not the plugin: it ignores our keys.

    Before vLLM has loaded its plugins only ``VLLM_PLUGINS`` is known, which names all
    that it will load; one whose import fails is logged and left out.

    Raises: ConfigError
    """
    if plugin_registered or "vllm" not in sys.modules:
        return
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and "sauce" not in named.split(","):
        raise ConfigError(
            f"VLLM_PLUGINS={named} keeps vLLM from loading vllm-sauce, so nothing "
            "would be forgotten; name sauce in it, too"
        )
    if getattr(sys.modules.get("vllm.plugins"), "plugins_loaded", False):
        raise ConfigError(
            "vLLM has loaded its plugins in this process, but not vllm-sauce, so "
            "nothing would be forgotten; install vllm-sauce in this Python (its entry "
            "point is how vLLM finds it), and look for its error in vLLM's log"
        )


def _checked(concepts: tuple[str, ...], strength: float) -> tuple[list[str], float]:
    if not concepts:
        raise InvalidRequestError("name at least one concept: forget('dog')")
    for name in concepts:
        if not isinstance(name, str):
            raise InvalidRequestError(
                f"concepts are names, got {type(name).__name__}; "
                "write forget('dog', 'red'), not forget(['dog', 'red'])"
            )
    return list(concepts), check_strength(strength)


def _number(value: int | float) -> str:
    # Python refuses to print integers of more than a few thousand digits.
    if isinstance(value, float) or abs(value) < 10**30:
        return f"{value}"
    return "a huge integer"


def _nested(value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"'sauce' must be an object with {', '.join(_FIELDS)}, "
            f"got {type(value).__name__}"
        )
    unknown = [key for key in value if key not in _FIELDS]
    if unknown:
        raise InvalidRequestError(
            f"unknown field {_short(unknown[0])} in 'sauce'; "
            f"known: {', '.join(_FIELDS)}"
        )
    return dict(value)


def _request(fields: Mapping[str, object]) -> ForgetRequest:
    if "profile" in fields:
        raise InvalidRequestError(
            "no profiles are configured on this server; name the concepts in 'forget'"
        )
    if "forget" not in fields:
        raise InvalidRequestError("'forget' is missing: name the concepts to forget")
    names = fields["forget"]
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple):
        raise InvalidRequestError(
            f"'forget' must be a list of names, got {type(names).__name__}"
        )
    for name in names:
        if not isinstance(name, str):
            raise InvalidRequestError(
                f"'forget' must be a list of names, got {type(name).__name__} in it"
            )
    if not names:
        raise InvalidRequestError(
            "'forget' is empty: name at least one concept, or leave the key out"
        )
    strength = check_strength(fields.get("strength", 1.0))
    return ForgetRequest(forget=tuple(names), strength=strength)


def _short(key: object) -> str:
    return repr(str(key)[:64])
