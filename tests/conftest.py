# SPDX-License-Identifier: Apache-2.0
"""Marks, the order of files, and what was left out, for all tests."""

from __future__ import annotations

import atexit
import sys
from typing import Any

import pytest

from tests.engines import SHARE_AN_ENGINE, Guard, file_of, mark_by_fixtures
from tests.inspection.browser import NO_BROWSER

LONG = (
    "tests/batch/test_run.py",
    "tests/kernels/test_native_build.py",
    "tests/plugin/models/test_looking.py",
    "tests/tiny/test_model.py",
)
"""Files without an engine that would keep one process busy while the other is done."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Guard())
    # See tests/startup. Triton's bindings would end a run by calling this a leak.
    startup: Any = sys.modules.get("sitecustomize")
    if hasattr(startup, "leave_out"):
        atexit.unregister(startup.leave_out)
        atexit.register(startup.take_in)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts an engine; files with such tests come first.

    They take longest: whichever process is done first takes small files to the end.
    First of all, and together, are those that share an engine: another's end would
    take what every engine of a process stands on.
    """
    for item in items:
        mark_by_fixtures(item)
        # Into a report of JUnit's form, for scripts/compatibility.py.
        item.user_properties += [
            ("feature", mark.args[0]) for mark in item.iter_markers("feature")
        ]
    starting = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(
        key=lambda item: (
            file_of(item.nodeid) not in SHARE_AN_ENGINE,
            item.path not in starting,
            file_of(item.nodeid) not in LONG,
        )
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let vLLM read its environment anew: it remembers it once an engine has run."""
    if (envs := sys.modules.get("vllm.envs")) is not None:
        envs.disable_envs_cache()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute whole files, those that share an engine as one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByEngine(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = file_of(nodeid)
            return SHARE_AN_ENGINE[0] if file in SHARE_AN_ENGINE else file

    return ByEngine(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say once what no test here could look at."""
    skipped = terminalreporter.stats.get("skipped", ())
    missed = sum(NO_BROWSER in str(report.longrepr) for report in skipped)
    if missed:
        terminalreporter.section("the report's page was not opened", yellow=True)
        terminalreporter.write_line(f"{missed} tests were skipped: {NO_BROWSER}")
