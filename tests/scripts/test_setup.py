# SPDX-License-Identifier: Apache-2.0
"""``scripts/setup`` with a pip that only takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.places import ROOT

TOOLS = ("bash", "awk", "cat", "chmod", "cp", "cut", "dirname", "mkdir", "sha256sum")

# Passes for a Python with venv, and as the .venv's own: notes what it is asked to do.
PYTHON = """#!/bin/bash
echo "$@" >> "{notes}"
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
case "$*" in *{fails}*) exit 1;; esac
"""


class Checkout:
    """A copy of the scripts, on a machine that has only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.notes = folder / "notes"
        self.stamp = self.root / ".venv" / ".sauce-setup"
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.disk(100_000)

    def command(self, name: str, script: str) -> None:
        """Put a command on the machine."""
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def disk(self, free_mib: int) -> None:
        """Set how much of the disk is free."""
        self.command("df", f"#!/bin/bash\necho H\necho - - - {free_mib} - -\n")

    def python(self, fails: str = "NOTHING") -> None:
        """Install a Python, which fails when its arguments hold ``fails``."""
        self.command("python3.11", PYTHON.format(notes=self.notes, fails=fails))

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return subprocess.run(
            [str(self.root / "scripts" / "setup")],
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/")},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs(self) -> list[str]:
        """Return the pip calls that installed the project."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line for line in lines if "pip install" in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return a checkout on a machine without Python and GPU."""
    return Checkout(tmp_path)


def test_without_python_says_so(checkout: Checkout) -> None:
    """No Python: an error that names the versions, and nothing half made."""
    done = checkout.setup()
    assert done.returncode != 0
    assert "Python 3.11" in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_short_disk_says_so(checkout: Checkout) -> None:
    """A full disk: an error with both sizes, before anything is downloaded."""
    checkout.python()
    checkout.disk(123)
    done = checkout.setup()
    assert done.returncode != 0
    assert "6144 MiB" in done.stderr
    assert "123 MiB" in done.stderr
    assert not checkout.installs()


def test_gpu_decides_the_extra(checkout: Checkout) -> None:
    """``cuda`` where nvidia-smi answers, ``cpu`` where it fails."""
    checkout.python()
    checkout.command("nvidia-smi", "#!/bin/bash\nexit 9\n")
    assert checkout.setup().returncode == 0
    checkout.stamp.unlink()
    checkout.command("nvidia-smi", "#!/bin/bash\nexit 0\n")
    assert checkout.setup().returncode == 0
    cpu, cuda = checkout.installs()
    assert ".[cpu,train,scale,dev]" in cpu
    assert ".[cuda,train,scale,dev]" in cuda


def test_second_run_does_nothing(checkout: Checkout) -> None:
    """Set up once; again only when what it depends on has changed."""
    checkout.python()
    assert checkout.setup().returncode == 0
    noted = checkout.notes.read_text()
    assert checkout.setup().returncode == 0
    assert checkout.notes.read_text() == noted
    for file in ("pyproject.toml", "scripts/torchvision_cure.py"):
        with (checkout.root / file).open("a") as stream:
            stream.write("\n")
        noted = checkout.notes.read_text()
        assert checkout.setup().returncode == 0
        assert checkout.notes.read_text() != noted, file


@pytest.mark.parametrize("fails", ["'pip install'", "'import vllm'"])
def test_failed_install_is_not_remembered(checkout: Checkout, fails: str) -> None:
    """A set-up that failed says so and is tried again."""
    checkout.python(fails=fails)
    done = checkout.setup()
    assert done.returncode != 0
    assert "setup:" in done.stderr
    assert not checkout.stamp.exists()


def test_it_says_how_to_get_a_browser(checkout: Checkout) -> None:
    """Once, where there is none."""
    checkout.python()
    assert "apt-get install chromium-headless-shell" in checkout.setup().stdout
    assert not checkout.setup().stdout
    checkout.stamp.unlink()
    checkout.command("google-chrome", "#!/bin/bash\n")
    assert "hromium" not in checkout.setup().stdout
