# SPDX-License-Identifier: Apache-2.0
"""An engine's process ends with the process it works for.

vLLM's engine core waits for requests for ever when its parent is killed: it keeps the
GPU's memory, and the process that takes the parent's place cannot start.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress

VARIABLE = "SAUCE_PARENT"
"""Number of the process whose death ends the processes it started. vLLM warns of every
variable that begins with VLLM and is not its own."""


def tie_children() -> None:
    """Make engine processes that this one starts end with it."""
    os.environ[VARIABLE] = str(os.getpid())


def install() -> None:
    """Watch the process named in the environment, if this is not it."""
    number = os.environ.get(VARIABLE, "")
    if not number.isdecimal() or int(number) == os.getpid():
        return
    with suppress(AttributeError, NotImplementedError, PermissionError):
        try:
            handle = os.pidfd_open(int(number))
        except ProcessLookupError:
            os._exit(1)  # It died while this one was being started.
        threading.Thread(
            target=_wait, args=(handle,), name="sauce-parent", daemon=True
        ).start()


def _wait(handle: int) -> None:
    # Readable once the process is gone; no time is spent until then.
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os._exit(1)
