# SPDX-License-Identifier: Apache-2.0
"""Builds and loads ``native.cpp``, the op for few tokens on a CPU, once per machine.

A PyTorch call costs about what the whole loop does for a token, and a Python frame
as much, so decoding runs without either. Nothing is built at import; ``prepare`` is
called where a worker loads a model on a CPU. Without a compiler, or with
``VLLM_SAUCE_NATIVE=0``, the op stays with its Python form.

Not ``torch.utils.cpp_extension.load``: its lock file waits for ever for a process that
was killed while it built.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch

# Defines the op that the library adds a kernel to.
from vllm_sauce_kernels.masked_edit import dispatch as dispatch

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = (
    "-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-fopenmp-simd",
    "-ffp-contract=fast", "-fvisibility=hidden", "-pipe",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)  # fmt: skip
BUILD_TIMEOUT = 600
"""Seconds; a compiler that hangs must not keep a server from starting."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_lock = threading.Lock()
_loaded: bool | None = None
"""None: not tried yet."""
_how = "not available: native.prepare() has not been called"


def prepare() -> bool:
    """Build the C++ kernel unless the cache has it, and load it; once per process.

    Returns: whether the op runs it
    """
    global _loaded, _how
    with _lock:
        if _loaded is None:
            try:
                _how, _loaded = _load(), True
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                reason = " ".join(str(error).split()) or repr(error)
                _how, _loaded = f"not available: {reason}", False
        return _loaded


def how() -> str:
    """Return in one line where the C++ kernel came from or why it is missing."""
    return _how


def _load() -> str:
    """Register the kernel and return where it came from.

    Raises: RuntimeError, OSError, SubprocessError
    """
    if os.environ.get("VLLM_SAUCE_NATIVE") == "0":
        raise RuntimeError("switched off by VLLM_SAUCE_NATIVE=0")
    compiler = find_compiler()
    library = cache_folder() / f"masked_edit-{_key(compiler)}.so"
    if whole(library):
        source = "from the cache"
    else:
        start = time.perf_counter()
        build(compiler, library)
        source = f"built in {time.perf_counter() - start:.0f} s"
        if not whole(library):
            raise RuntimeError(f"{library} was damaged while it was written")
    torch.ops.load_library(str(library))
    if not torch._C._dispatch_has_kernel_for_dispatch_key(
        "vllm_sauce::masked_edit", "CPU"
    ):
        raise RuntimeError(f"{library} registered no kernel")
    return source


def find_compiler() -> list[str]:
    """Return the C++ compiler's command: ``$CXX``, g++ or clang++.

    Raises: RuntimeError
    """
    asked = os.environ.get("CXX")
    candidates = [shlex.split(asked)] if asked else [["g++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    raise RuntimeError(
        f"no C++ compiler: {asked or 'g++, clang++'} not found; install one or set CXX"
    )


def cache_folder() -> Path:
    """Return where libraries are kept between processes."""
    if mine := os.environ.get("VLLM_SAUCE_CACHE"):
        return Path(mine).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "vllm_sauce"


def build(compiler: list[str], library: Path) -> None:
    """Compile to a temporary file and move it in place: others may build the same.

    Raises: RuntimeError, OSError, SubprocessError
    """
    root = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=library.parent)
    os.close(handle)
    command = [
        *compiler, *FLAGS, f"-I{root / 'include'}", str(SOURCE), "-o", name,
        f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT
        )
        if done.returncode:
            raise RuntimeError(f"{compiler[0]} failed: {_first_error(done.stderr)}")
        # Behind the library, where a loader does not look.
        with open(name, "r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())
        os.chmod(name, 0o755)  # others may share the cache; they may not write to it
        os.replace(name, library)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def whole(library: Path) -> bool:
    """Return whether a file is a library as it was built, its digest at the end.

    Loading a truncated one could end the process with a signal.
    """
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == digest


def _key(compiler: list[str]) -> str:
    """Name everything the library depends on: homes are shared by many machines."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, timeout=60
    )
    parts = (
        SOURCE.read_text(),
        *FLAGS,
        torch.__version__,
        *compiler,
        version.stdout,
        _cpu(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _cpu() -> str:
    """Return what ``-march=native`` depends on."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _first_error(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[0].strip()
