# SPDX-License-Identifier: Apache-2.0
"""Compare the seams we rely on with what a vLLM has: at start, and with its source."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.compat.seams import SEAMS, Seam


@dataclass(frozen=True, slots=True)
class Found:
    """What a version has under a seam's name."""

    params: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    has: tuple[str, ...] = ()

    def lacks(self, seam: Seam) -> Iterator[str]:
        """Say what the seam wants and this does not give."""
        leads = tuple(seam.leads.split())
        if self.params[: len(leads)] != leads:
            yield f"takes ({', '.join(self.params)}), not ({', '.join(leads)}) first"
        for what, wanted, given in (
            ("takes", seam.takes, self.params),
            ("calls", seam.calls, self.calls),
            ("has", seam.has, self.has),
        ):
            if missing := [name for name in wanted.split() if name not in given]:
                yield f"{what} no {', '.join(missing)}"


def check(*places: str) -> None:
    """Compare the rows of these places with the vLLM that runs; imports their modules.

    Raises: UnsupportedVLLMError naming every seam that is missing or has changed.
    """
    version = compat.vllm_version()
    wrong = [
        f"{seam.full_name} {complaint}"
        for seam in SEAMS
        if seam.place in places and seam.in_version(version)
        for complaint in _complaints(seam)
    ]
    if wrong:
        raise UnsupportedVLLMError(
            f"vLLM {version} differs from what vllm-sauce was written for, and might "
            f"serve unedited: {'; '.join(wrong)}; install vLLM {compat.SUPPORTED_VLLM}"
        )


def check_worker(vllm_config: Any) -> None:
    """Compare the rows that a worker of this engine needs.

    Raises: UnsupportedVLLMError.
    """
    runner = "v2" if vllm_config.use_v2_model_runner else "v1"
    check("worker", runner, "cpu" if compat.on_cpu() else "gpu")


def _complaints(seam: Seam) -> Iterator[str]:
    found = live(seam)
    if found is None:
        yield "is missing"
    else:
        yield from found.lacks(seam)


def live(seam: Seam) -> Found | None:
    """Return what the vLLM that runs has under a seam's name; imports its module.

    What is wrapped around a function, also by us, is taken off.
    """
    try:
        thing: Any = importlib.import_module(seam.module)
        for part in seam.name.split("."):
            thing = inspect.getattr_static(thing, part)
    except (ModuleNotFoundError, AttributeError):
        return None
    if isinstance(thing, type):
        return Found(has=tuple(_names_of_class(thing)))
    function = _function(thing)
    if function is None:
        return Found()
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    return Found(params=code.co_varnames[:count], calls=tuple(_names_in(code)))


def _function(thing: Any) -> FunctionType | None:
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    return thing if isinstance(thing, FunctionType) else None


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that a body uses, those of the functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


@functools.lru_cache(maxsize=64)
def _names_of_class(cls: type) -> frozenset[str]:
    names = set(dir(cls))
    for base in cls.__mro__:
        names.update(vars(base).get("__annotations__", ()))
        for value in vars(base).values():
            if (function := _function(value)) is not None:
                # Among other names, the attributes that it sets.
                names.update(function.__code__.co_names)
    return frozenset(names)
