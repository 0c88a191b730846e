# SPDX-License-Identifier: Apache-2.0
"""Which vLLM runs, and how its functions are wrapped."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin.compat.seams import SEAMS

SUPPORTED_VLLM = SpecifierSet(">=0.26,<0.33", prereleases=True)


def vllm_version() -> str:
    """Return ``vllm.__version__`` (the CPU wheel has no ``vllm`` distribution)."""
    from vllm import __version__

    return str(__version__)


def check_version() -> None:
    """Refuse a vLLM whose seams nobody has read.

    Raises: UnsupportedVLLMError.
    """
    version = vllm_version()
    if Version(Version(version).base_version) not in SUPPORTED_VLLM:
        raise UnsupportedVLLMError(
            f"vllm-sauce supports vLLM {SUPPORTED_VLLM}, this is {version}; install a "
            "supported vLLM, or remove vllm-sauce to serve without it"
        )


def seam_owner(place: str, name: str) -> Any:
    """Return the module or class that holds what a row of ``seams`` names.

    Raises: UnsupportedVLLMError when vLLM has moved or renamed it.
    """
    version = vllm_version()
    rows = [seam for seam in SEAMS if (seam.place, seam.name) == (place, name)]
    (seam,) = [row for row in rows if row.in_version(version)]
    try:
        owner: Any = importlib.import_module(seam.module)
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
    except (AttributeError, ModuleNotFoundError):
        raise UnsupportedVLLMError(
            f"vLLM {version} has no {seam.full_name}; update vllm_sauce/plugin/compat/"
        ) from None
    return owner


def hook(
    place: str, name: str, around: Callable[..., Any], *, imported: bool = False
) -> None:
    """``wrap`` what a row of ``seams`` names: what has no row is not hooked.

    ``imported``: also where other modules of vLLM's have imported it by name.

    Raises: UnsupportedVLLMError when vLLM has moved or renamed it.
    """
    owner, attribute = seam_owner(place, name), name.rpartition(".")[2]
    original = getattr(owner, attribute, None)
    wrap(owner, attribute, around)
    for loaded in list(sys.modules.values()) if imported else ():
        if getattr(loaded, "__name__", "").startswith("vllm.") and (
            vars(loaded).get(attribute) is original
        ):
            setattr(loaded, attribute, getattr(owner, attribute))


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by a function that calls ``around(original, ...)``.

    Raises: UnsupportedVLLMError when vLLM has renamed the seam.
    """
    raw = vars(owner).get(name) if isinstance(owner, type) else getattr(owner, name, 0)
    original = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
    if not callable(original):
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has no {getattr(owner, '__name__', owner)}.{name}; "
            "update vllm_sauce/plugin/compat/"
        )

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    if isinstance(raw, (staticmethod, classmethod)):
        setattr(owner, name, type(raw)(wrapper))
    else:
        setattr(owner, name, wrapper)


def logger(name: str) -> Any:
    """Return vLLM's own logger, so that our lines look and filter like its lines."""
    from vllm.logger import init_logger

    return init_logger(f"vllm.{name}")
