# SPDX-License-Identifier: Apache-2.0
"""Runs the Triton kernels on CPU tensors without touching the rest of the process.

``TRITON_INTERPRET=1`` for the whole run would reach vLLM's own kernels. Here the knob
is on only while a test of this folder holds the fixture.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from vllm_sauce_kernels.masked_edit import native

KERNEL = "vllm_sauce_kernels.masked_edit.kernel"


def import_kernel_afresh(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the kernel's module anew, for the test only.

    ``triton.jit`` decides at decoration whether a kernel is interpreted.
    """
    package = importlib.import_module(KERNEL.rpartition(".")[0])
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    module = importlib.import_module(KERNEL)
    # Taken back in reverse order: the module and the attribute as they were before.
    monkeypatch.setitem(sys.modules, KERNEL, module)
    monkeypatch.setattr(package, "kernel", module)
    return module


@pytest.fixture(scope="session", autouse=True)
def native_kernel() -> None:
    """The op runs in C++ in all tests of this folder, where there is a compiler."""
    native.prepare()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The kernel's module, its kernels run by Triton's interpreter."""
    triton = pytest.importorskip("triton")
    tl = triton.language

    def interpreted_sum(block: Any, axis: int) -> Any:
        return tl.reduce(block, axis, tl.standard._sum_combine)

    if not triton.knobs.runtime.interpret:
        # tl.sum was decorated at Triton's import, when the knob was off. Wrapping it in
        # an InterpretedFunction would leave tl.core patched when the kernel returns.
        monkeypatch.setattr(tl, "sum", interpreted_sum)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        yield import_kernel_afresh(monkeypatch)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernel's module, its kernels ready for Triton's compiler."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set for the whole run")
    return import_kernel_afresh(monkeypatch)
