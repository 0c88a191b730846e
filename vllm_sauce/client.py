# SPDX-License-Identifier: Apache-2.0
"""What a client writes to make one request forget."""

from __future__ import annotations

import math
import os
import sys

from vllm_sauce.errors import ConfigError, InvalidRequestError, InvalidStrengthError

MAX_STRENGTH = 10.0
"""Largest strength a request may ask for; 1.0 is the catalogue's calibrated edit."""

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

    Raises: InvalidRequestError, InvalidStrengthError, ConfigError where vLLM runs
        without the plugin
    """
    _refuse_without_plugin()
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
    return (
        f"{value}"
        if isinstance(value, float)
        else (f"{value}" if abs(value) < 10**30 else "a huge integer")
    )
