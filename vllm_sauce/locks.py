# SPDX-License-Identifier: Apache-2.0
"""Locks that keep two processes from writing to one folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from vllm_sauce.errors import SauceError


def take(file: IO[Any], folder: Path, *, wait: bool, error: type[SauceError]) -> None:
    """Lock a folder by an open file of it, until the file is closed.

    Raises: the error that is asked for, if another process has the lock and ``wait`` is
    false, or if the file system has no locks
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise error(
            f"another run is writing to {folder}; wait for it, or end it"
        ) from None
    except OSError as reason:
        raise error(
            f"{folder} cannot be locked ({reason.strerror}), which some network file "
            "systems do not offer; write to another one"
        ) from reason
