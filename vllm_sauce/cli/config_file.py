# SPDX-License-Identifier: Apache-2.0
"""A command's options from a YAML file, ``--config``; flags override what it says.

A key is a flag without its dashes, or the name of its field; the options that a stage
has of its own stand in a section of their own. Places are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cyclopts import Token

from vllm_sauce.data.located_yaml import line_of, load_yaml
from vllm_sauce.errors import ConfigError, nearest_names

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import Argument, ArgumentCollection
    from yaml import Node

HUB_OR_PLACE = ("model", "saes")
"""Fields whose text may be a folder or a name on the hub."""


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments that the command line has not what ``--config`` says.

    Raises: ConfigError
    """
    given = [one for one in arguments if one.name == "--config" and one.tokens]
    if not given:
        return
    path = Path(given[0].tokens[0].value)
    found, root = load_yaml(path)
    file, met = _File(path, root, options(arguments)), dict[str, str]()
    for key, value in file.leaves(found):
        argument = file.known[key]
        if argument.name in met:
            raise file.error(key, f"is {met[argument.name]} again")
        met[argument.name] = key
        if not argument.tokens and value is not None:
            source = file.place(key)
            for word in file.words(key, value):
                argument.append(Token(keyword=key, value=word, source=source))


def options(arguments: ArgumentCollection) -> dict[str, Argument]:
    """Return what a file may hold by its key, as "training.lr"."""
    return {
        ".".join((*one.keys[:-1], name)): one
        for one in arguments
        # Without keys it is no field of the command's dataclass, but beside it.
        if one.keys and one.name != "*"
        for name in (one.name.lstrip("-").replace("-", "_"), one.keys[-1])
    }


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    root: Node | None
    known: Mapping[str, Argument]

    def place(self, key: str) -> str:
        return f"{self.path}, line {line_of(self.root, key.split('.'))}"

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.place(key)}: {key} {problem}")

    def leaves(self, found: Any, above: str = "") -> Iterator[tuple[str, Any]]:
        """Give each option's key and value, through all sections."""
        if not isinstance(found, Mapping):
            where = self.place(above.rstrip(".")) if above else self.path
            raise ConfigError(f"{where}: KEY: VALUE lines are wanted, got {found!r}")
        for name, value in found.items():
            key = f"{above}{name}"
            if key in self.known:
                yield key, value
            elif any(one.startswith(f"{key}.") for one in self.known):
                yield from self.leaves(value, f"{key}.")
            else:
                raise self.error(key, f"is no option{self._nearest(key)}")

    def _nearest(self, key: str) -> str:
        section, _, word = key.replace("-", "_").rpartition(".")
        sections = {one.rpartition(".")[0] for one in self.known} - {"", section}
        # A right name in a wrong section is nearer than one that is spelt like it.
        found = [one for one in self.known if one.rpartition(".")[2] == word]
        found = found or list(nearest_names(key, [*self.known, *sections], 1))
        if found:
            return f"; did you mean {' or '.join(found)}?"
        return ": docs/reference.md has them all"

    def words(self, key: str, value: Any) -> list[str]:
        """Return a value as a command line has it, a word each time it is given."""
        argument = self.known[key]
        pairs = argument.parameter.accepts_keys is False
        several = argument.token_count()[1]
        if pairs and isinstance(value, Mapping):
            return [f"{name}={self._word(key, one)}" for name, one in value.items()]
        found = value if isinstance(value, list) else [value]
        if (
            pairs
            or (isinstance(value, list) and not several)
            or any(isinstance(one, list | Mapping) for one in found)
        ):
            wanted = (
                "NAME: VALUE lines" if pairs else "a list" if several else "a value"
            )
            raise self.error(key, f"wants {wanted}, got {value!r}")
        return [self._word(key, one) for one in found]

    def _word(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            return json.dumps(value)
        argument = self.known[key]
        beside = str(self.path.parent / Path(value).expanduser())
        if Path in (argument.hint, *get_args(argument.hint)):
            return beside
        is_place = argument.keys[-1] in HUB_OR_PLACE and Path(beside).exists()
        return beside if is_place else value
