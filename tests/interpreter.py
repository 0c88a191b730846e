# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, without what it does anew for each call and could keep."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any

import pytest


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Let it remember what it looks up at each call: a quarter of its time.

    To replace the builtins it lists and sorts all members of five modules and classes
    for every kernel, and again for every function that a kernel calls. Each sum and
    product of integers it does twice, to see whether it overflows:
    kernels/test_tensor_cores.py, which has the largest, lets it.
    """
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    tl = interpreter.tl
    is_builtin = tl.core.is_builtin
    names: dict[Any, list[str]] = {}

    def patch_builtin(owner: Any, builder: Any, scope: Any) -> None:
        if owner not in names:
            members = inspect.getmembers(owner)
            names[owner] = [name for name, member in members if is_builtin(member)]
        for name in names[owner]:
            member = getattr(owner, name)
            # Not so within a kernel, where it has been replaced.
            if is_builtin(member):
                interpreter._patch_attr(owner, name, member, builder, scope)

    types: dict[str, Any] = {}
    find = interpreter._get_np_dtype

    def np_dtype(tt_dtype: Any) -> Any:
        is_block = isinstance(tt_dtype, tl.block_type)
        element = tt_dtype.element_ty if is_block else tt_dtype
        if isinstance(element, tl.pointer_type):
            return find(element)
        if element.name not in types:
            types[element.name] = find(element)
        return types[element.name]

    patch.setattr(interpreter, "_patch_builtin", patch_builtin)
    patch.setattr(interpreter, "_get_np_dtype", np_dtype)
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", options)
