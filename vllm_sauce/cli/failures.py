# SPDX-License-Identifier: Apache-2.0
"""What a command that fails tells: one line on stderr, and an exit status."""

from __future__ import annotations

import errno
import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final, ParamSpec, TypeVar

import typer

from vllm_sauce.errors import ConfigError, SauceError

FAILED = 2
"""Exit status of what could not go on; 1 is for each command to use."""
INTERRUPTED = 130

_VLLM = "'vllm-sauce[cuda]', or without a GPU 'vllm-sauce[cpu]'"
EXTRAS: Final = {
    **dict.fromkeys(("vllm", "torch", "transformers", "numpy", "PIL", "triton"), _VLLM),
    **dict.fromkeys(("ray", "pyarrow"), "'vllm-sauce[scale]'"),
    **dict.fromkeys(("sae_lens", "resvg_py", "datasets"), "'vllm-sauce[train]'"),
}
"""What brings a module that the base installation has not; vLLM brings all of its."""

_OURS = ("vllm_sauce", "vllm_sauce_kernels")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_shown = False


def show_tracebacks() -> None:
    """From here on let every error through as it is."""
    global _shown
    _shown = True


def told(
    name: str, needs: tuple[str, ...], command: Callable[_P, _R]
) -> Callable[_P, _R]:
    """Return a command that says in one line why it failed, and what it lacks first.

    Only what nobody but us can have caused is let through with its traceback.
    """

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            for module in needs:
                if find_spec(module) is None:
                    raise ConfigError(_missing(module))
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            reason = reason_of(error)
            # A reader of our output who went away is typer's to handle.
            if reason is None or _shown or getattr(error, "errno", 0) == errno.EPIPE:
                raise
            typer.echo(f"sauce {name}: {reason}", err=True)
            raise typer.Exit(FAILED) from error

    return run


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Draw what shows a result that is written already: a failure is a warning."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error) or f"{type(error).__name__}: {error}"
        typer.echo(f"warning: {what} is not drawn: {reason}", err=True)


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
