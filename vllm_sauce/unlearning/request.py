# SPDX-License-Identifier: Apache-2.0
"""What one request asks to forget, read from its extra arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_sauce.client import check_strength
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.unlearning.wire import means_us

_FIELDS = ("forget", "profile", "strength")
_FLAT = tuple(f"sauce_{name}" for name in _FIELDS)


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
    unknown = sorted(key for key in ours if key != "sauce" and key not in _FLAT)
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
