# SPDX-License-Identifier: Apache-2.0
"""Keys of an SAE's configuration: those read, those without effect, no others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vllm_sauce.errors import UnsupportedSAEError

_SHOWN = 5
_LONGEST_VALUE = 60


def names(text: str) -> frozenset[str]:
    """Return the words of a text, which lists better than a set of strings does."""
    return frozenset(text.split())


def check_keys(
    config: Mapping[str, object],
    source: object,
    *,
    used: Collection[str],
    inert: Collection[str],
) -> None:
    """Refuse a configuration with a key whose effect is not known.

    ``used`` are those that the caller reads and checks; ``inert`` ones say what the SAE
    was trained on and how, and change nothing of what it computes.

    Raises: UnsupportedSAEError
    """
    unknown = sorted(set(config) - set(used) - set(inert))
    if unknown:
        said = ", ".join(_entry(name, config[name]) for name in unknown[:_SHOWN])
        more = f", and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise UnsupportedSAEError(
            f"{source}: nobody knows here what {said}{more} does; it may change what "
            "the SAE computes. If you know that it does not, take it out of the file"
        )


def _entry(name: str, value: object) -> str:
    text = repr(value)
    short = text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
    return f"{name} = {short}"
