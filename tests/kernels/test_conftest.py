# SPDX-License-Identifier: Apache-2.0
"""The fixtures leave nothing behind that another test would run."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.kernels.conftest import KERNEL, import_kernel_afresh


@pytest.mark.parametrize("imported", [True, False])
def test_the_kernels_are_put_back(imported: bool) -> None:
    """Interpreted ones left behind would edit a GPU's tensors, too."""
    pytest.importorskip("triton")
    package = importlib.import_module(KERNEL.rpartition(".")[0])
    with pytest.MonkeyPatch.context() as outer:
        if imported:
            import_kernel_afresh(outer)
        else:
            outer.delattr(package, "kernel", raising=False)
            outer.delitem(sys.modules, KERNEL, raising=False)
        before = sys.modules.get(KERNEL), getattr(package, "kernel", None)
        with pytest.MonkeyPatch.context() as inner:
            module = import_kernel_afresh(inner)
            assert package.kernel is module
            assert sys.modules[KERNEL] is module
            assert module not in before
        assert (sys.modules.get(KERNEL), getattr(package, "kernel", None)) == before
