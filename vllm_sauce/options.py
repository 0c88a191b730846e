# SPDX-License-Identifier: Apache-2.0
"""Options that several dataclasses have, as the command line and a file give them.

A dataclass of settings is its stage's command line, too: cyclopts makes a flag of each
field, with the docstring below it as its help. ``docs/reference.md`` is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
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


def engine_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE pairs for vLLM's ``LLM``; a value that is no JSON is text.

    Raises: ConfigError
    """
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"wanted KEY=VALUE for the engine, as dtype=float32; got {pair!r}"
            )
        if name in found:
            raise ConfigError(f"{name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _site_paths(_type: object, tokens: Sequence[Token]) -> dict[str, Path]:
    pairs = parse_pairs([token.value for token in tokens], "SITE=FOLDER")
    return {site: Path(path) for site, path in pairs.items()}


def _named_paths(_type: object, tokens: Sequence[Token]) -> dict[str, Path]:
    pairs = parse_pairs([token.value for token in tokens], "NAME=BUNDLE")
    return {name: Path(path) for name, path in pairs.items()}


def _site_saes(_type: object, tokens: Sequence[Token]) -> dict[str, str]:
    return parse_pairs([token.value for token in tokens], "SITE=SAE")


def _engine_args(_type: object, tokens: Sequence[Token]) -> dict[str, Any]:
    return engine_arguments([token.value for token in tokens])


_PAIRS = Parameter(n_tokens=-1, accepts_keys=False)
"""Each pair is one word, and the flag may be given again."""
SitePaths = Annotated[
    Mapping[str, Path],
    _PAIRS,
    Parameter(name="--sae", converter=_site_paths, metavar="SITE=FOLDER"),
]
NamedBundles = Annotated[
    Mapping[str, Path], _PAIRS, Parameter(converter=_named_paths, metavar="NAME=BUNDLE")
]
SiteSAEs = Annotated[
    Mapping[str, str],
    _PAIRS,
    Parameter(name="--sae", converter=_site_saes, metavar="SITE=SAE"),
]
EngineArgs = Annotated[
    Mapping[str, Any],
    _PAIRS,
    Parameter(name="--engine-arg", converter=_engine_args, metavar="KEY=VALUE"),
]
Sites = Annotated[tuple[str, ...], Parameter(name="--site")]
ROLE_NAMES = ("image", "text", "generated")
"""Kinds of tokens, ``activations.shards.Role`` in words."""
Roles = Annotated[tuple[str, ...], Parameter(name="--role", choices=ROLE_NAMES)]
