# SPDX-License-Identifier: Apache-2.0
"""Tests that start vLLM are marked ``engine``; one that does so unmarked fails.

A test is marked by itself, by its file, or by a fixture that ``starts_engine``. What
counts is an engine of this process, a model's configuration made here of vLLM's engine
arguments (its API server and run-batch begin so, and where vLLM has not yet noted what
the model is, it loads itself once more to see), or vLLM loaded in a process that the
test starts. To import vLLM, or to parse its arguments, does not count.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

_STARTS = {
    # Every engine that this process asks is started through one of its clients.
    "vllm.v1.engine.core_client": (
        "EngineCoreClient",
        ("make_client", "make_async_mp_client"),
    ),
    "vllm.engine.arg_utils": ("EngineArgs", ("create_model_config",)),
}
"""By module: a class, and what starts vLLM where it is called."""
_SITE = """
import pathlib, sys

class Tells:
    def find_spec(self, name, path=None, target=None):
        if name == "vllm.logger":
            pathlib.Path({loaded!r}).touch()

sys.meta_path.insert(0, Tells())
"""
UNMARKED = "starts vLLM: mark it engine, or with starts_engine its fixture"

SHARE_AN_ENGINE = (
    "tests/plugin/worker/test_canary.py",
    "tests/plugin/test_embeddings.py",
    "tests/plugin/test_engine.py",
    "tests/plugin/test_engine_core.py",
    "tests/plugin/test_requests.py",
)
"""Files that one process runs, with engines of the whole session."""

F = TypeVar("F", bound=Callable[..., Any])


def starts_engine(fixture: F) -> F:
    """Mark each test that uses a fixture; stands below ``pytest.fixture``."""
    fixture.starts_engine = True  # type: ignore[attr-defined]
    return fixture


def mark_by_fixtures(item: pytest.Item) -> None:
    """Mark a test one of whose fixtures starts an engine."""
    known = getattr(item, "_fixtureinfo", None)
    for *_, fixture in () if known is None else known.name2fixturedefs.values():
        if not getattr(fixture.func, "starts_engine", False):
            continue
        item.add_marker(pytest.mark.engine)
        if fixture.scope == "session" and file_of(item.nodeid) not in SHARE_AN_ENGINE:
            raise pytest.UsageError(
                f"{item.nodeid} shares the engine {fixture.argname} with other files: "
                f"add its file to SHARE_AN_ENGINE in tests/engines.py"
            )


def file_of(nodeid: str) -> str:
    """Return the file that a test is in."""
    return nodeid.partition("::")[0]


class Guard:
    """Lets a test start vLLM only where it is marked ``engine``."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sauce-guard-")
        self.loaded = Path(self._folder.name) / "vllm-was-loaded"
        """Made by a process that loads vLLM and finds our ``sitecustomize``."""
        site = Path(self._folder.name) / "sitecustomize.py"
        site.write_text(_SITE.format(loaded=str(self.loaded)))
        self.watches = False
        for module in _STARTS:
            sys.meta_path.insert(0, _AfterImport(module, self._watch_calls))
        self._watch_processes()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch while a test without the mark runs."""
        self.watches = item.get_closest_marker("engine") is None
        # Left by a process that outlived its test.
        self.loaded.unlink(missing_ok=True)
        try:
            return (yield)
        finally:
            self.watches = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        """Fail a test whose fixtures' processes load vLLM."""
        return (yield from self._step())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        """Fail a test whose own processes load vLLM."""
        return (yield from self._step())

    def _step(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            if self.loaded.exists():
                self.loaded.unlink()
                pytest.fail(f"this test {UNMARKED}")

    def _watch_calls(self, module: ModuleType) -> None:
        owner, names = _STARTS[module.__name__]
        for name in names:
            start = inspect.getattr_static(getattr(module, owner), name)
            call = getattr(start, "__func__", start)

            @functools.wraps(call)
            def watched(*args: Any, _start: Any = call, **kwargs: Any) -> Any:
                if self.watches:
                    pytest.fail(f"this test {UNMARKED}")
                # An engine of a test before takes the process's groups with it when it
                # is collected: now, and not while this one stands on them.
                gc.collect()
                return _start(*args, **kwargs)

            is_static = isinstance(start, staticmethod)
            setattr(
                getattr(module, owner),
                name,
                staticmethod(watched) if is_static else watched,
            )

    def _watch_processes(self) -> None:
        begin = subprocess.Popen.__init__

        @functools.wraps(begin)
        def watched(*args: Any, **kwargs: Any) -> None:
            if self.watches:
                inherited = kwargs.get("env")
                given = os.environ if inherited is None else inherited
                # Python imports it first of all, in whatever process.
                path = [self._folder.name, *filter(None, [given.get("PYTHONPATH")])]
                kwargs["env"] = {**given, "PYTHONPATH": os.pathsep.join(path)}
            begin(*args, **kwargs)

        subprocess.Popen.__init__ = watched  # type: ignore[method-assign]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once it has been imported."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find the module as everybody else would."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_call(module: ModuleType) -> None:
            run(module)
            self.call(module)

        spec.loader.exec_module = run_and_call  # type: ignore[method-assign]
        return spec
