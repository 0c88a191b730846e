# SPDX-License-Identifier: Apache-2.0
"""Arrows: kernels <- sae <- concepts, bundle <- unlearning <- plugin <- server, cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors", "client", "config", "files"},
    {"scale"},
    {"sae"},
    {"concepts"},
    {"bundle"},
    {"unlearning"},
    {"data"},
    {"models"},
    {"plugin", "training", "evaluation", "batch"},
    {"server", "cli"},
]
ALLOWED = {
    part: set().union(*LAYERS[: height + 1])
    for height, layer in enumerate(LAYERS)
    for part in layer
}
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


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_arrows_point_one_way(part):
    folder = ROOT / "vllm_sauce" / part
    sources = files(f"vllm_sauce/{part}") if folder.is_dir() else [folder]
    for file in (s if s.suffix else s.with_suffix(".py") for s in sources):
        if not file.exists():
            pytest.skip(f"{part} is not written yet")
        for name in imported(file):
            root, _, inner = name.partition(".")
            if (
                root == "vllm_sauce"
                and (ROOT / "vllm_sauce")
                .joinpath(inner.split(".")[0])
                .with_suffix("")
                .name
                in ALLOWED
            ):
                assert inner.split(".")[0] in ALLOWED[part], f"{file} imports {name}"


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
