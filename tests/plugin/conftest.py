# SPDX-License-Identifier: Apache-2.0
"""Engines of the plugin tests, shared.

``SAUCE_TEST_RUNNER=v2`` runs the same tests on Model Runner V2 through Triton's
interpreter; it must be set before vLLM is imported, so that run is one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import starts_engine
from tests.interpreter import hasten, take_masks_of_integers

RUNNER = os.environ.get("SAUCE_TEST_RUNNER", "v1")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# The engine lives in the test's process: tests look at its tables.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def _interpret() -> None:
    """Let Triton's interpreter run the runner's kernels, on a machine without a GPU."""
    os.environ["TRITON_INTERPRET"] = "1"

    class _Driver:
        """Stands in for Triton's missing CPU backend; the interpreter needs none."""

        @staticmethod
        def is_active() -> bool:
            return True

        @staticmethod
        def get_current_target() -> Any:
            # As Triton says it: inductor, which writes C++ here, goes on without.
            raise RuntimeError("0 active drivers ([]). There should only be one.")

    class _Backend:
        driver = _Driver
        compiler = None

    import triton.backends

    triton.backends.backends["cpu"] = _Backend()

    # vLLM 0.27 - 0.30 samples with CUDA's log1p, of which the interpreter has a stub.
    import triton.language as tl
    from triton.language.extra import libdevice

    libdevice.log1p = lambda x: tl.log(1.0 + x)
    hasten(pytest.MonkeyPatch())
    take_masks_of_integers(pytest.MonkeyPatch())

    # vLLM compiles some functions of its own though it is eager: for the driver above.
    import torch._dynamo

    torch._dynamo.config.disable = True


os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(RUNNER == "v2"))
if RUNNER == "v2" and not torch.cuda.is_available():
    _interpret()


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The shipped sauce-tiny."""
    from tests.plugin.support import MODEL

    return MODEL


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """A bundle of random SAEs at both sites, with strong edits."""
    from tests.plugin.random_bundle import write_random_bundle

    return write_random_bundle(tmp_path_factory.mktemp("bundle") / "b", model_dir)


@pytest.fixture(scope="session")
def admission(bundle_dir: Path) -> Any:
    """Admission with the random bundle: concepts seen, read and both."""
    from vllm_sauce.config import SauceConfig
    from vllm_sauce.plugin.frontend.admission import Admission

    return Admission.open(SauceConfig(bundle=str(bundle_dir)))


def engine(model_dir: Path, sauce: dict[str, Any] | None, **kwargs: Any) -> Any:
    """Start an engine small enough that several fit beside each other."""
    from vllm import LLM
    from vllm.model_executor.models import registry

    # A class that vLLM meets for the first time it looks at in a process of its own,
    # lest that initialises CUDA: seconds for each of a hundred.
    registry._run_in_subprocess = lambda look: look()
    options: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "block_size": 32,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 * 1024 * 1024,
        "enable_prefix_caching": True,
        "seed": 0,
    }
    options.update(kwargs)
    if sauce is not None:
        options["additional_config"] = {"sauce": sauce}
    return LLM(model=str(model_dir), **options)


@pytest.fixture(scope="session")
@starts_engine
def sauced(model_dir: Path, bundle_dir: Path) -> Iterator[Any]:
    """An engine with the plugin and the random bundle."""
    yield engine(model_dir, {"bundle": str(bundle_dir)})


@pytest.fixture(scope="session")
@starts_engine
def plain(model_dir: Path) -> Iterator[Any]:
    """The same engine without the plugin."""
    yield engine(model_dir, None)


def tight_engine(model_dir: Path, bundle_dir: Path) -> Any:
    """Start an engine whose prefill is chunked into a few tokens a step.

    It serves by priority, and tells of the blocks that it keeps.
    """
    return engine(
        model_dir,
        {"bundle": str(bundle_dir)},
        max_num_batched_tokens=64,
        max_num_seqs=4,
        scheduling_policy="priority",
        disable_log_stats=False,
        kv_events_config={"enable_kv_cache_events": True, "publisher": "null"},
    )


# Of the session, too: when an engine goes, so does what all of a process stand on.
@pytest.fixture(scope="session")
@starts_engine
def tight(model_dir: Path, bundle_dir: Path) -> Iterator[Any]:
    """A tight engine with the plugin and the random bundle."""
    yield tight_engine(model_dir, bundle_dir)


@pytest.fixture(scope="session")
def reference(model_dir: Path, bundle_dir: Path) -> Any:
    """The transformers oracle on the same bundle."""
    from tests.plugin.support import ReferenceModel
    from vllm_sauce.bundle import Bundle

    return ReferenceModel(model_dir, Bundle.load(bundle_dir))
