# SPDX-License-Identifier: Apache-2.0
"""What every Python process of ``scripts/test`` runs first: a third less of a core.

vLLM's import makes a million objects, none of which goes. By default 700 of these make
the collector look for some that do, and its last look, at the end of the process, takes
three seconds for what ends with the process anyway.
"""

import atexit
import gc

gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)
