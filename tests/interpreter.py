# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, without what it does anew for each call and could keep."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import replace
from types import FunctionType
from typing import Any

import pytest

_BUILTINS: dict[Any, list[str]] = {}
"""By module or class of Triton's: the names of its builtins."""
_NUMPY_TYPES: dict[str, Any] = {}
_REWRITTEN: dict[Any, Any] = {}
"""By file and code of a function: what the interpreter makes of it."""
_BLOCKS: dict[tuple[Any, ...], Any] = {}
"""By lengths: a block's shape and number of elements, once found valid."""
_SHAPES: dict[tuple[Any, ...], Any] = {}
"""By lengths: a tensor's shape and number of elements."""


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Let it remember what it looks up at each call: half of its time.

    To replace the builtins it lists and sorts all members of five modules and classes
    for every kernel, and again for every function that a kernel calls; it reads the
    source of each anew once its module is imported anew; and each block's shape is made
    and checked as often as there are blocks. Each sum and product of integers it does
    twice, to see whether it overflows: kernels/test_tensor_cores.py, which has the
    largest, lets it.
    """
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    _keep_builtins(patch, interpreter)
    _keep_types(patch, interpreter)
    _keep_shapes(patch, interpreter.tl.core)
    _keep_rewritten(patch, interpreter)
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", options)


def take_masks_of_integers(patch: pytest.MonkeyPatch) -> None:
    """Let loads and stores take what compilers take: vLLM drafts n-grams by such."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder

    def wrap(name: str, place: int) -> None:
        original = getattr(builder, name)

        def call(self: Any, *args: Any) -> Any:
            given = list(args)
            data = given[place].data
            if data.dtype != bool:
                given[place] = interpreter.TensorHandle(data != 0, interpreter.tl.int1)
            return original(self, *given)

        patch.setattr(builder, name, call)

    wrap("create_masked_load", 1)
    wrap("create_masked_store", 2)


def _keep_builtins(patch: pytest.MonkeyPatch, interpreter: Any) -> None:
    tl = interpreter.tl
    is_builtin = tl.core.is_builtin
    patch_lang = interpreter._patch_lang
    replaced: list[frozenset[str]] = []
    seen: dict[Any, frozenset[str]] = {}

    def languages(fn: Any) -> frozenset[str]:
        if fn not in seen:
            known = [v for v in fn.__globals__.values() if inspect.ismodule(v)]
            seen[fn] = frozenset(m.__name__ for m in known if m in (tl, tl.core))
        return seen[fn]

    def patch_builtin(owner: Any, builder: Any, scope: Any) -> None:
        if owner not in _BUILTINS:
            members = inspect.getmembers(owner)
            _BUILTINS[owner] = [name for name, member in members if is_builtin(member)]
        for name in _BUILTINS[owner]:
            member = getattr(owner, name)
            # Not so within a kernel, where it has been replaced.
            if is_builtin(member):
                interpreter._patch_attr(owner, name, member, builder, scope)

    def patch_once(fn: Any) -> Any:
        # For a function that a kernel calls the kernel has replaced it all, and is who
        # puts it back.
        if replaced and languages(fn) <= replaced[0]:
            return None
        scope = patch_lang(fn)
        if replaced:
            return scope
        replaced.append(languages(fn))
        restore = scope.restore

        def restore_all() -> None:
            replaced.clear()
            restore()

        scope.restore = restore_all
        return scope

    patch.setattr(interpreter, "_patch_builtin", patch_builtin)
    patch.setattr(interpreter, "_patch_lang", patch_once)


def _keep_types(patch: pytest.MonkeyPatch, interpreter: Any) -> None:
    tl = interpreter.tl
    find = interpreter._get_np_dtype

    def np_dtype(tt_dtype: Any) -> Any:
        is_block = isinstance(tt_dtype, tl.block_type)
        element = tt_dtype.element_ty if is_block else tt_dtype
        if isinstance(element, tl.pointer_type):
            return find(element)
        if element.name not in _NUMPY_TYPES:
            _NUMPY_TYPES[element.name] = find(element)
        return _NUMPY_TYPES[element.name]

    patch.setattr(interpreter, "_get_np_dtype", np_dtype)


def _keep_shapes(patch: pytest.MonkeyPatch, core: Any) -> None:
    make_block = core.block_type.__init__
    sequences = (list, tuple, core.tuple)

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        if not isinstance(shape, sequences):
            make_block(self, element_ty, shape)
            return
        lengths = tuple(getattr(length, "value", length) for length in shape)
        if lengths not in _BLOCKS:
            make_block(self, element_ty, shape)
            _BLOCKS[lengths] = self.shape, self.numel
        self.element_ty = element_ty
        self.shape, self.numel = _BLOCKS[lengths]
        self.name = f"<{lengths}, {element_ty}>"

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        lengths = tuple(type.shape) if type.is_block() else ()
        if lengths not in _SHAPES:
            shape = core.tuple([core.constexpr(length) for length in lengths])
            _SHAPES[lengths] = core.constexpr(math.prod(lengths)), shape
        self.numel, self.shape = _SHAPES[lengths]

    patch.setattr(core.block_type, "__init__", block)
    patch.setattr(core.tensor, "__init__", tensor)


def _keep_rewritten(patch: pytest.MonkeyPatch, interpreter: Any) -> None:
    rewrite = interpreter.FunctionRewriter.rewrite_ast

    def rewrite_ast(self: Any) -> Any:
        code = self.fn.__code__
        key = code.co_filename, code
        if key not in _REWRITTEN:
            _REWRITTEN[key] = rewrite(self)
            return _REWRITTEN[key]
        known, names = _REWRITTEN[key], self.fn.__globals__
        for name, value in vars(interpreter).items():
            names.setdefault(name, value)
        again = FunctionType(
            known.__code__, names, known.__name__, self.fn.__defaults__
        )
        again.__kwdefaults__ = self.fn.__kwdefaults__
        again.__annotations__ = known.__annotations__
        return again

    patch.setattr(interpreter.FunctionRewriter, "rewrite_ast", rewrite_ast)
