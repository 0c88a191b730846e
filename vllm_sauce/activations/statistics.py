# SPDX-License-Identifier: Apache-2.0
"""What an SAE's training needs to know of the activations first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MEDIAN_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """Where the activations are and how large."""

    rms_norm: float
    """Root of the mean squared norm."""

    mean: Tensor
    """[d_model]"""

    median: Tensor
    """The geometric median, [d_model]."""

    @classmethod
    def of(cls, activations: Tensor) -> ActivationStatistics:
        """Return the statistics; the median is that of evenly spread rows.

        Shapes: activations [num_tokens, d_model]
        """
        every = max(1, len(activations) // MEDIAN_ROWS)
        return cls(
            rms_norm=float(activations.pow(2).sum(1).mean().sqrt()),
            mean=activations.mean(0),
            median=geometric_median(activations[::every]),
        )

    @property
    def scale(self) -> float:
        """The factor that makes the mean squared norm d_model."""
        return float(len(self.mean) ** 0.5 / max(self.rms_norm, 1e-12))


def geometric_median(points: Tensor) -> Tensor:
    """Return the point of least summed distance to all, by Weiszfeld's iteration.

    Shapes: points [num_points, d_model] -> [d_model]
    """
    median = points.mean(0)
    for _ in range(100):
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-6)
        moved = (weights[:, None] * points).sum(0) / weights.sum()
        if (moved - median).norm() < 1e-5 * moved.norm().clamp_min(1e-6):
            return moved
        median = moved
    return median
