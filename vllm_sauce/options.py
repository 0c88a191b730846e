# SPDX-License-Identifier: Apache-2.0
"""Options that several dataclasses have, as the command line and a file give them.

A dataclass of settings is its stage's command line, too: cyclopts makes a flag of each
field, with the docstring below it as its help. ``docs/reference.md`` is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from vllm_sauce.errors import ConfigError


def check_at_least(settings: object, least: float, *names: str) -> None:
    """Refuse fields of settings that are below a value; None is not given.

    Raises: ConfigError
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def check_choice(settings: object, name: str, choices: Collection[str]) -> None:
    """Refuse a field of settings that is none of the choices.

    Raises: ConfigError
    """
    value = getattr(settings, name)
    if value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}, got {value!r}")


def check_roles(roles: Collection[str]) -> None:
    """Refuse kinds of tokens that there are not, or none. Raises: ConfigError"""
    if not roles or not set(roles) <= set(ROLE_NAMES):
        raise ConfigError(
            f"roles are some of {', '.join(ROLE_NAMES)}, got {', '.join(roles)}"
        )


def parse_pairs(given: Sequence[str], wanted: str) -> dict[str, str]:
    """Parse texts such as SITE=SAE, ``wanted`` says which.

    Raises: ConfigError
    """
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not name or not equals or not value:
            raise ConfigError(f"wanted {wanted}, got {pair!r}")
        if name in found:
            raise ConfigError(f"{name} is given twice")
        found[name] = value
    return found


def engine_arguments(given: Sequence[str], wanted: str = "KEY=VALUE") -> dict[str, Any]:
    """Parse KEY=VALUE pairs for vLLM's ``LLM``; a value that is no JSON is text.

    Raises: ConfigError
    """
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"wanted {wanted} for the engine, as dtype=float32; got {pair!r}"
            )
        if name in found:
            raise ConfigError(f"{name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _paths(given: Sequence[str], wanted: str) -> dict[str, Path]:
    return {name: Path(path) for name, path in parse_pairs(given, wanted).items()}


def _pairs(
    metavar: str,
    parse: Callable[[Sequence[str], str], dict[str, Any]] = parse_pairs,
    name: str | None = None,
) -> Parameter:
    """Return a flag of pairs: each is one word, and the flag may be given again."""

    def convert(_type: object, tokens: Sequence[Token]) -> dict[str, Any]:
        return parse([token.value for token in tokens], metavar)

    return Parameter(
        name=name, n_tokens=-1, accepts_keys=False, converter=convert, metavar=metavar
    )


SitePaths = Annotated[Mapping[str, Path], _pairs("SITE=FOLDER", _paths, "--sae")]
NamedBundles = Annotated[Mapping[str, Path], _pairs("NAME=BUNDLE", _paths)]
SiteSAEs = Annotated[Mapping[str, str], _pairs("SITE=SAE", name="--sae")]
EngineArgs = Annotated[
    Mapping[str, Any], _pairs("KEY=VALUE", engine_arguments, "--engine-arg")
]
Sites = Annotated[tuple[str, ...], Parameter(name="--site")]
ROLE_NAMES = ("image", "text", "generated")
"""Kinds of tokens, ``activations.shards.Role`` in words."""
Roles = Annotated[tuple[str, ...], Parameter(name="--role", choices=ROLE_NAMES)]
