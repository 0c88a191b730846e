# SPDX-License-Identifier: Apache-2.0
"""What a client writes to make one request forget."""

from __future__ import annotations

import math

from vllm_sauce.errors import InvalidRequestError, InvalidStrengthError

MAX_STRENGTH = 10.0
"""Largest strength a request may ask for; 1.0 is the catalogue's calibrated edit."""


def forget(*concepts: str, strength: float = 1.0) -> dict[str, object]:
    """Return ``SamplingParams.extra_args`` that make a request forget concepts.

    Raises: InvalidRequestError, InvalidStrengthError
    """
    names, amount = _checked(concepts, strength)
    return {"sauce": {"forget": names, "strength": amount}}


def forget_body(*concepts: str, strength: float = 1.0) -> dict[str, object]:
    """Return the OpenAI client's ``extra_body`` that makes a request forget concepts.

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
