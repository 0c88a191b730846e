# SPDX-License-Identifier: Apache-2.0
"""Folders import only from folders below, and neither files nor folders in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.places import ROOT

LAYERS = [
    {"errors"},
    {"options"},
    {"client", "config", "files", "pages", "scale", "concepts"},
    {"", "sae"},
    {"sae/formats", "bundle", "unlearning", "data"},
    {"models", "activations", "plugin/compat"},
    {"plugin/startup", "plugin/sites", "plugin/models"},
    {"plugin/worker", "plugin/frontend"},
    {"plugin/tap", "plugin/bench"},
    {"plugin"},
    {"server", "evaluation", "batch"},
    {"evaluation/asking"},
    {"learning/selection", "learning/harvest", "learning/training", "playground"},
    {
        "learning/calibration",
        "learning/importing",
        "learning/rows",
        "inspection",
        "measuring",
    },
    {"learning"},
    {"cli"},
]
"""Folders below ``vllm_sauce``, and files at its top; "" is its ``__init__``. Each
imports only from the lines above its own."""
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
CORE = ("sae", "concepts", "bundle", "unlearning", "data", "models")


def imported(path):
    """Names of all modules a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "vllm_sauce":
                yield from (f"vllm_sauce.{alias.name}" for alias in node.names)


def files(*folders):
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert found, folders
    return found


def test_the_core_never_imports_vllm():
    for file in files("kernels", *(f"vllm_sauce/{part}" for part in CORE)):
        for name in imported(file):
            assert name.split(".")[0] != "vllm", f"{file} imports {name}"


def test_the_kernels_never_import_the_package():
    for file in files("kernels"):
        for name in imported(file):
            assert name.split(".")[0] != "vllm_sauce", f"{file} imports {name}"


def module(file):
    """Dotted name of a file of the package."""
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module(file): file for file in files("vllm_sauce")}


def part(name):
    """Folder of a module below the package, or the name of a file at its top."""
    file = MODULES[name].relative_to(ROOT / "vllm_sauce")
    if len(file.parts) > 1:
        return file.parent.as_posix()
    return "" if file.stem == "__init__" else file.stem


def own_imports(name):
    """Modules of the package that a module imports."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [one if one in MODULES else node.module for one in inner]
        else:
            continue
        yield from (one for one in wanted if one in MODULES and one != name)


def test_every_folder_has_its_line():
    assert {part(name) for name in MODULES} <= set(HEIGHT)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_point_one_way(name):
    for other in own_imports(name):
        if part(other) != part(name):
            assert HEIGHT[part(other)] < HEIGHT[part(name)], f"{name} imports {other}"


def test_no_circle_of_files():
    sorter = TopologicalSorter({name: set(own_imports(name)) for name in MODULES})
    sorter.prepare()  # Raises CycleError, which names the circle.


@pytest.mark.parametrize("folder", ["vllm_sauce", "kernels"])
def test_no_folder_holds_too_much(folder):
    """A folder of more than 14 files, or a file of over 400 lines, is to be parted."""
    for file in files(folder):
        beside = [other for other in file.parent.iterdir() if other.is_file()]
        assert len(beside) <= 14, file.parent
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file


@pytest.mark.parametrize("folder", ["vllm_sauce", "kernels"])
def test_no_function_is_too_long(folder):
    for file in files(folder):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{file}: {node.name} has {length} lines"


def test_importing_the_package_pulls_only_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import vllm_sauce; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert set(out) - set(sys.stdlib_module_names) == {"vllm_sauce"}


def test_resolving_masks_needs_no_torch():
    code = (
        "import sys, vllm_sauce.bundle, vllm_sauce.unlearning; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
