# SPDX-License-Identifier: Apache-2.0
"""A step of answers' tokens alone: while it goes on, the next has the same slots.

Most of a server's steps are such, and whatever a step touches comes from cold caches.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np


class Decoding:
    """What such a step was told by, and what each site's buffer was written for."""

    def __init__(
        self,
        changes: int,
        req_ids: Sequence[str],
        steps: Sequence[object],
        starts: np.ndarray,
        num_tokens: np.ndarray,
    ) -> None:
        self._changes = changes
        self._req_ids = list(req_ids)
        self._steps = steps
        self._num_tokens = num_tokens.tobytes()
        self._advance = num_tokens.copy()
        self._next_starts = starts + num_tokens

    def goes_on(
        self, changes: int, req_ids: Sequence[str], steps: Sequence[object]
    ) -> bool:
        """Say whether a step has the same requests, and the sites still hold theirs."""
        return (
            changes == self._changes
            and req_ids == self._req_ids
            and all(map(operator.is_, steps, self._steps))
        )

    def advances(self, starts: np.ndarray, num_tokens: np.ndarray) -> bool:
        """Say whether each request goes on where the last step left it.

        One that was preempted may begin again.

        Shapes: starts, num_tokens [num_reqs]
        """
        if num_tokens.tobytes() != self._num_tokens or not bool(
            (starts == self._next_starts).all()
        ):
            return False
        self._next_starts += self._advance
        return True
