# SPDX-License-Identifier: Apache-2.0
"""The C++ kernel is built once, loaded whole, and never stands in the way."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.copies import Copy
from tests.kernels import native_child
from tests.places import ROOT
from vllm_sauce_kernels.masked_edit import native


class Child:
    """A process that prepares the kernel in a cache folder."""

    def __init__(self, cache: Path, **env: str | Path) -> None:
        mine = {"VLLM_SAUCE_CACHE": cache, **env}
        self.copy = Copy(native_child.tell, "eager", env=mine)

    def finish(self) -> dict[str, Any]:
        """Return what it found."""
        done = self.copy.wait()
        assert done.exit_code == 0, done.stderr
        return checked(done.stdout.splitlines()[-1])


def in_a_process(cache: Path) -> dict[str, Any]:
    """Return what a process found that nobody had loaded anything into."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.native_child", "inductor"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "VLLM_SAUCE_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return checked(done.stdout.splitlines()[-1])


def checked(told: str) -> dict[str, Any]:
    """Return what a process told, if the kernel took the Python form's place."""
    found: dict[str, Any] = json.loads(told)
    assert found["same_error"]
    assert found["python_calls_before"] == 2
    assert found["python_calls"] == (0 if found["prepared"] else 2)
    return found


@pytest.fixture
def library() -> Path:
    """The kernel as this run built it."""
    if not native.prepare():
        assert "no C++ compiler" in native.how()
        pytest.skip(native.how())
    compiler = native.find_compiler()
    return native.cache_folder() / f"masked_edit-{native._key(compiler)}.so"


class Compiler:
    """A command that stands for a compiler and copies a library, slowly or not."""

    def __init__(self, folder: Path, library: Path, before: str = "") -> None:
        self.log = folder / "runs"
        self.log.touch()
        self.command = folder / "compiler"
        self.command.write_text(
            f"""#!/bin/sh
[ "$1" = --version ] && exit
while [ "$1" != -o ]; do shift; done
echo run >> {shlex.quote(str(self.log))}
{before}
cp {shlex.quote(str(library))} "$2"
"""
        )
        self.command.chmod(0o755)

    def runs(self) -> int:
        """Return how often it was run."""
        return len(self.log.read_text().split())


def test_an_empty_cache_is_filled_by_the_real_compiler(
    tmp_path: Path, library: Path
) -> None:
    """Nothing is built before prepare(); graphs made before it run the new kernel."""
    cache = tmp_path / "some" / "cache"
    first = in_a_process(cache)
    assert first["prepared"] and first["how"].startswith("built in ")
    assert not first["cache_before"]
    assert [file.name for file in cache.iterdir()] == [library.name]
    assert next(cache.iterdir()).stat().st_mode & 0o777 == 0o755
    second = Child(cache).finish()
    assert second["how"] == "from the cache"


def test_a_damaged_library_is_built_again(tmp_path: Path, library: Path) -> None:
    """Loading half a library ends a process; the second build serves as if new."""
    compiler, cache = Compiler(tmp_path, library), tmp_path / "cache"
    Child(cache, CXX=compiler.command).finish()
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:20000])
    found = Child(cache, CXX=compiler.command).finish()
    assert found["prepared"] and found["how"].startswith("built in ")
    assert compiler.runs() == 2
    assert native.whole(file)


def test_a_library_is_whole_or_not(tmp_path: Path, library: Path) -> None:
    """Cut off anywhere, or with one bit changed, it is not."""
    content = library.read_bytes()
    file = tmp_path / "library.so"
    assert not native.whole(file)
    for length in range(0, len(content), 997):
        file.write_bytes(content[:length])
        assert not native.whole(file)
    for at in range(0, len(content), 997):
        changed = bytearray(content)
        changed[at] ^= 1
        file.write_bytes(changed)
        assert not native.whole(file)
    file.write_bytes(content)
    assert native.whole(file)


def test_the_name_tells_what_the_library_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another source, flag, compiler, torch or CPU never gets the same file."""
    other = tmp_path / "other.cpp"
    other.write_text(native.SOURCE.read_text() + "\n")
    keys = {native._key(["true"]), native._key(["true"]), native._key(["echo"])}
    changes: tuple[tuple[object, str, object], ...] = (
        (native, "SOURCE", other),
        (native, "FLAGS", (*native.FLAGS, "-O2")),
        (torch, "__version__", "2.0"),
        (native, "_cpu", lambda: "another"),
    )
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.add(native._key(["true"]))
    assert len(keys) == 6


def test_a_compiler_that_makes_no_library_is_asked_once(tmp_path: Path) -> None:
    """A file that no loader takes, though whole: the Python form stays."""
    (tmp_path / "text").write_text("not a library")
    compiler = Compiler(tmp_path, tmp_path / "text")
    found = Child(tmp_path / "cache", CXX=compiler.command).finish()
    assert not found["prepared"] and compiler.runs() == 1
    assert "\n" not in found["how"] and "masked_edit-" in found["how"]


def test_processes_build_at_the_same_time(tmp_path: Path, library: Path) -> None:
    """Each builds to a file of its own; the cache ends up with one library."""
    compiler = Compiler(tmp_path, library, before="sleep 6")
    cache = tmp_path / "cache"
    children = [Child(cache, CXX=compiler.command) for _ in range(2)]
    assert all(child.finish()["prepared"] for child in children)
    assert compiler.runs() == 2
    assert len(list(cache.iterdir())) == 1


def test_a_killed_build_harms_no_later_one(tmp_path: Path, library: Path) -> None:
    """No lock is left behind, and half a library is not taken for one."""
    cut = f'head -c 9000 {shlex.quote(str(library))} > "$2"; sleep 600'
    compiler = Compiler(tmp_path, library, before=cut)
    child = Child(tmp_path / "cache", CXX=compiler.command)
    while not compiler.runs():
        assert child.copy.process.is_alive()
        time.sleep(0.1)
    os.killpg(child.copy.pid, signal.SIGKILL)
    child.copy.process.join()
    Compiler(tmp_path, library)
    found = Child(tmp_path / "cache", CXX=compiler.command).finish()
    assert found["prepared"] and found["how"].startswith("built in ")


def test_without_a_compiler_the_op_works(tmp_path: Path) -> None:
    """The Python form runs, in compiled graphs, too."""
    found = Child(tmp_path, CXX="", PATH="/nowhere").finish()
    assert not found["prepared"]
    assert found["how"] == (
        "not available: no C++ compiler: g++, clang++ not found; install one or set CXX"
    )


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("VLLM_SAUCE_CACHE", "~/kept", "kept"),
        ("XDG_CACHE_HOME", "~/caches", "caches/vllm_sauce"),
        ("XDG_CACHE_HOME", "", ".cache/vllm_sauce"),
    ],
)
def test_a_tilde_is_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    """As for bundles, which the same variables lead to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLLM_SAUCE_CACHE", raising=False)
    monkeypatch.setenv(name, value)
    assert native.cache_folder() == tmp_path / wanted


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """As if nothing had been prepared yet, for attempts that fail before loading."""
    for name in ("_loaded", "_how"):
        monkeypatch.setattr(native, name, getattr(native, name))
    native._loaded = None
    monkeypatch.setenv("VLLM_SAUCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "false")
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler not found"),
        ({}, "false failed: no message"),
        ({"VLLM_SAUCE_NATIVE": "0"}, "switched off by VLLM_SAUCE_NATIVE=0"),
        ({"VLLM_SAUCE_CACHE": "/proc/sauce"}, "/proc/sauce"),
        ({"VLLM_SAUCE_CACHE": f"{__file__}/cache"}, "Not a directory"),
    ],
    ids=["no such compiler", "fails", "off", "read-only", "a file"],
)
def test_the_reason_is_one_line(
    untried: pytest.MonkeyPatch, env: dict[str, str], says: str
) -> None:
    for name, value in env.items():
        untried.setenv(name, value)
    assert not native.prepare()
    reason = native.how()
    assert reason.startswith("not available: ")
    assert says in reason and "\n" not in reason


def test_a_full_disk_is_named(untried: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler's own first error is the reason; no file is left."""
    full = "echo 'In file x:' >&2; echo 'fatal error: disk full' >&2; exit 1"
    compiler = Compiler(tmp_path, tmp_path, before=full)
    untried.setenv("CXX", str(compiler.command))
    assert not native.prepare()
    assert native.how().endswith("compiler failed: fatal error: disk full")
    assert not list((tmp_path / "cache").iterdir())
