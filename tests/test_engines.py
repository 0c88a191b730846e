# SPDX-License-Identifier: Apache-2.0
"""What starts vLLM is marked, or fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import SHARE_AN_ENGINE, UNMARKED, Guard
from tests.places import ROOT

CONFTEST = """
import os
import pytest
from tests.engines import Guard, mark_by_fixtures

def pytest_configure(config):
    # This run is watched, too: what it starts is not to tell whoever watches.
    path = os.environ["PYTHONPATH"].split(os.pathsep)
    kept = [folder for folder in path if "sauce-guard-" not in folder]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    config.addinivalue_line("markers", "engine: starts vLLM")
    config.pluginmanager.register(Guard())

def pytest_collection_modifyitems(items):
    for item in items:
        mark_by_fixtures(item)
"""
CLIENTS = """
class EngineCoreClient:
    @staticmethod
    def make_client():
        return "client"

    @staticmethod
    def make_async_mp_client():
        return "client"
"""
ARGUMENTS = """
class EngineArgs:
    model = "model"

    def create_model_config(self):
        return self.model
"""
TESTS = """
import subprocess, sys
import pytest
from tests.engines import starts_engine

def client():
    from vllm.v1.engine.core_client import EngineCoreClient
    return EngineCoreClient.make_client()

def config():
    from vllm.engine.arg_utils import EngineArgs
    return EngineArgs().create_model_config()

def child():
    subprocess.run([sys.executable, "-c", "import vllm.logger"], check=True)

@pytest.fixture
@starts_engine
def llm():
    return client()

@pytest.fixture
def forgotten():
    return child()

def test_bad_client():
    client()

def test_bad_config():
    config()

def test_bad_child():
    child()

def test_bad_fixture(forgotten):
    pass

def test_good_fixture(llm):
    assert llm == "client"
    child()

@pytest.mark.engine
def test_good_mark():
    assert client() == "client" and config() == "model"

def test_good_other():
    import vllm
    subprocess.run([sys.executable, "-c", "import vllm"], check=True)
"""


def test_who_starts_vllm_unmarked_fails(tmp_path: Path) -> None:
    """With a stand-in for vLLM: here in two ways, in a child, in a fixture's child."""
    engine = tmp_path / "vllm" / "v1" / "engine"
    engine.mkdir(parents=True)
    for folder in (engine, engine.parent, engine.parent.parent):
        (folder / "__init__.py").touch()
    (engine / "core_client.py").write_text(CLIENTS)
    (tmp_path / "vllm" / "logger.py").touch()
    arguments = tmp_path / "vllm" / "engine"
    arguments.mkdir()
    (arguments / "__init__.py").touch()
    (arguments / "arg_utils.py").write_text(ARGUMENTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        # -rN: no summary, which says each reason once more where CI is set.
        [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert "3 failed, 3 passed, 1 error" in done.stdout, done.stdout
    assert done.stdout.count(f"Failed: this test {UNMARKED}") == 4


@pytest.mark.engine
def test_vllm_tells_that_it_is_loaded() -> None:
    """The guard sees it in a child that knows nothing of tests."""
    guard = Guard()
    guard.watches = True
    try:
        code = "import vllm.logger"
        subprocess.run([sys.executable, "-c", code], check=True)
    finally:
        guard.watches = False
    assert guard.loaded.exists()
    from vllm.v1.engine.core_client import EngineCoreClient

    assert EngineCoreClient.make_client and EngineCoreClient.make_async_mp_client


def test_files_that_share_an_engine_are_there() -> None:
    assert all((ROOT / file).exists() for file in SHARE_AN_ENGINE)
