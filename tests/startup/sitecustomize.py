# SPDX-License-Identifier: Apache-2.0
"""What every Python process of ``scripts/test`` runs first; imports take a fifth less.

vLLM's import makes a million objects, none of which goes, and 700 of these by default
make the collector look for some that do.
"""

import gc

gc.set_threshold(100_000, 50, 50)
