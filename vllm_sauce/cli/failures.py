# SPDX-License-Identifier: Apache-2.0
"""What a command that fails tells: one line on stderr, and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from vllm_sauce.errors import ConfigError, SauceError

FAILED = 2
"""Exit status of what could not go on; 1 is for each command to use."""
INTERRUPTED = 130

_VLLM = "'vllm-sauce[cuda]', or without a GPU 'vllm-sauce[cpu]'"
EXTRAS: Final = {
    **dict.fromkeys(("vllm", "torch", "transformers", "triton"), _VLLM),
    **dict.fromkeys(("httpx", "numpy", "openai", "PIL"), _VLLM),
    **dict.fromkeys(("prometheus_client", "starlette"), _VLLM),
    **dict.fromkeys(("ray", "pyarrow"), "'vllm-sauce[scale]'"),
    **dict.fromkeys(("sae_lens", "resvg_py", "datasets"), "'vllm-sauce[train]'"),
}
"""What brings a module that the base installation has not; vLLM brings all of its."""

_OURS = ("vllm_sauce", "vllm_sauce_kernels")


def told(
    name: str, command: Callable[[], int | None], show_tracebacks: bool = False
) -> int:
    """Run a command and return its exit status; say in one line why it failed.

    Only what nobody but us can have caused is let through with its traceback, or all
    with ``show_tracebacks``.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # A reader of our output who went away; what is left would be told at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        reason = reason_of(error)
        if reason is None or show_tracebacks:
            raise
        return refused(name, reason)


def check_installed(modules: Iterable[str]) -> None:
    """Refuse to begin what would end for lack of a module.

    Raises: ConfigError naming what brings it
    """
    for module in modules:
        if find_spec(module) is None:
            raise ConfigError(_missing(module))


def refused(name: str, reason: str) -> int:
    """Say why a command did not do its work; return its exit status."""
    sys.stderr.write(f"{f'sauce {name}'.strip()}: {reason}\n")
    return FAILED


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Draw what shows a result that is written already: a failure is a warning."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error) or f"{type(error).__name__}: {error}"
        sys.stderr.write(f"warning: {what} is not drawn: {reason}\n")


def reason_of(error: Exception) -> str | None:
    """Return in one line why a command failed; None if the mistake is ours."""
    # Some quote a library's message, which has lines.
    message = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, SauceError):
        return message
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.split(".")[0]
        return None if module in _OURS else _missing(module)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory"
    library = _library(error)
    if library is None:
        return None
    return (
        f"{library} raised {type(error).__name__}: {message} "
        "(sauce --traceback COMMAND shows where)"
    )


def _missing(module: str) -> str:
    extra = EXTRAS.get(module)
    install = f"pip install {extra}" if extra else "install vllm-sauce again"
    return f"{module} is not installed: {install}"


def _library(error: Exception) -> str | None:
    """Return the library that raised an error; None if we did."""
    kind = type(error).__module__.split(".")[0]
    if kind not in ("builtins", *_OURS):
        return kind
    # A traceback's last frame is where it was raised, if that was in Python.
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return None if raised_in in _OURS else raised_in


def check_place(out: Path) -> None:
    """Refuse a file that cannot be written, before the work and not after it.

    Raises: ConfigError
    """
    folder = out.resolve().parent
    if out.is_dir():
        raise ConfigError(f"cannot write {out}: it is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"cannot write {out}: {folder} is no folder; make it first")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise ConfigError(f"cannot write {out}: no permission; name another file")
