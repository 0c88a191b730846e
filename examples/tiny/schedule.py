# SPDX-License-Identifier: Apache-2.0
"""The learning-rate schedule of both stages."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

WARMUP_STEPS = 60


def warmup_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Return a linear warm-up followed by a cosine to zero."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return LambdaLR(optimizer, factor)
