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

import numpy as np
import pytest

from tests.interpreter import hasten
from vllm_sauce_kernels.masked_edit import native

KERNEL = "vllm_sauce_kernels.masked_edit.kernel"


def import_kernel_afresh(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the kernel's module anew, for the test only.

    ``triton.jit`` decides at decoration whether a kernel is interpreted.
    """
    package = importlib.import_module(KERNEL.rpartition(".")[0])
    # Set before the import, so that what is put back is what was there, if anything.
    monkeypatch.setattr(package, "kernel", None, raising=False)
    for part in ("", "_parts", "_tiles", "_tokens", "_rank"):
        monkeypatch.setitem(sys.modules, KERNEL + part, ModuleType(KERNEL + part))
        del sys.modules[KERNEL + part]
    return importlib.import_module(KERNEL)


def widen_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter multiply bfloat16 numbers, not their bits as integers."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    tl = interpreter.tl
    original = interpreter.InterpreterBuilder.create_dot

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


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

    def interpreted_max(block: Any, axis: int) -> Any:
        return tl.reduce(block, axis, tl.standard._elementwise_max)

    def interpreted_zeros(shape: Any, dtype: Any) -> Any:
        return tl.full(shape, 0, dtype)

    def interpreted_cdiv(a: Any, b: Any) -> Any:
        return (a + b - 1) // b

    if not triton.knobs.runtime.interpret:
        # These were decorated at Triton's import, when the knob was off. Wrapping one
        # in an InterpretedFunction would leave tl.core patched when the kernel returns.
        monkeypatch.setattr(tl, "sum", interpreted_sum)
        monkeypatch.setattr(tl, "max", interpreted_max)
        monkeypatch.setattr(tl, "zeros", interpreted_zeros)
        monkeypatch.setattr(tl, "cdiv", interpreted_cdiv)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        hasten(monkeypatch)
        widen_bfloat16_products(monkeypatch)
        yield import_kernel_afresh(monkeypatch)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernel's module, its kernels ready for Triton's compiler."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set for the whole run")
    return import_kernel_afresh(monkeypatch)
