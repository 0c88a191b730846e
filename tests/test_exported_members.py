# SPDX-License-Identifier: Apache-2.0
import importlib
import types

import pytest

import vllm_sauce


@pytest.mark.parametrize("part", ["", ".sae", ".concepts", ".bundle"])
def test_all_is_sorted_and_is_what_the_module_exports(part):
    module = importlib.import_module(f"vllm_sauce{part}")
    present = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(module.__all__) - {"__version__"} == present
    constants = [name for name in module.__all__ if name.isupper()]
    rest = [name for name in module.__all__ if not name.isupper()]
    assert module.__all__ == sorted(constants) + sorted(rest)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_error_is_exported():
    from vllm_sauce import errors

    classes = {
        n
        for n, v in vars(errors).items()
        if isinstance(v, type) and v.__module__ == errors.__name__
    }
    assert classes <= set(vllm_sauce.__all__)
