# SPDX-License-Identifier: Apache-2.0
"""YAML whose mistakes can be found: the line of every place, no key twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vllm_sauce.errors import ConfigError
from vllm_sauce.files import check_unicode


class _Loader(yaml.SafeLoader):
    """No booleans and no dates: "no" and 2026-11-21 are words a concept may have."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_scalar(self, node: Any) -> Any:
        """Return a scalar's text, whole characters; JSON's escapes can be halves."""
        try:
            check_unicode(node.value)
        except UnicodeError as error:
            raise _wrong(node, str(error)) from error
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping with text as keys; a key twice is a mistake."""
        self.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key must be text")
            name = self.construct_scalar(key)
            if name in found:
                raise _wrong(key, f"{name!r} is there twice")
            found[name] = self.construct_object(value, deep=deep)
        return found


def _wrong(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def line_of(root: yaml.Node | None, place: Sequence[str | int]) -> int:
    """Return the line of the deepest node on the way to a place, from 1."""
    node, line = root, 1
    for step in place:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == step]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            pairs = [(value, value) for value in node.value[step : step + 1]]
        if pairs:
            key, node = pairs[0]
            line = key.start_mark.line + 1
    return line


def load_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """Read a YAML file, also as nodes for ``line_of``. Raises: ConfigError"""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        root = yaml.compose(text, Loader=_Loader)
        return yaml.load(text, Loader=_Loader), root
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{where}: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
