# SPDX-License-Identifier: Apache-2.0
"""What every Python process of ``scripts/test`` runs first: half of a core.

vLLM's import makes a million objects, none of which goes. By default 700 of these make
the collector look for some that do, its last look, at the end of the process, takes
three seconds for what ends with the process anyway, and each engine that starts or ends
has it look at them all nine times, half a second each.
"""

import atexit
import gc
import sys

MANY = 200
"""Modules that are new since what was there was last left out of every look."""

_collect, leave_out, take_in = gc.collect, gc.freeze, gc.unfreeze
_known = len(sys.modules)


def collect(generation: int = 2) -> int:
    """Collect; after many imports leave out from now on what is there."""
    global _known
    found = _collect(generation)
    if generation == 2 and len(sys.modules) > _known + MANY:
        _known = len(sys.modules)
        leave_out()
    return found


gc.set_threshold(100_000, 50, 50)
gc.collect = collect
# vLLM's own would have what was left out looked at again as each engine ends, or leave
# an engine out that is to go.
gc.freeze = gc.unfreeze = lambda: None
atexit.register(leave_out)
