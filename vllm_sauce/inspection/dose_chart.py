# SPDX-License-Identifier: Apache-2.0
"""The dose-response chart's geometry; the page's template draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_sauce.inspection.concept_effects import CALIBRATED, Effects, Line

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 44


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line, and what it says."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of the chart."""

    line: Line
    style: str
    """CSS class: what it is about, and which dash."""
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        """The points of an SVG polyline."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines and ticks in the coordinates of an SVG of WIDTH x HEIGHT."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    calibrated_x: float | None


def dose_chart(effects: Effects) -> Chart | None:
    """Return the chart of what forgetting does; None if nothing was asked."""
    if not effects.lines:
        return None
    first, last = min(effects.strengths), max(effects.strengths)
    span = last - first or 1.0

    def x(strength: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (strength - first) / span

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    curves = []
    for target in (True, False):
        lines = [line for line in effects.lines if line.target is target]
        for number, line in enumerate(lines):
            style = f"{'target' if target else 'kept'} dash{number}"
            values = zip(effects.strengths, line.probability, strict=True)
            points = tuple(
                Point(x(s), y(v), f"{line.label}, strength {s:g}: {100 * v:.0f} %")
                for s, v in values
            )
            curves.append(Curve(line, style, points))
    inside = first <= CALIBRATED <= last
    return Chart(
        tuple(curves),
        tuple((x(s), f"{s:g}") for s in _whole_or_all(effects.strengths)),
        tuple((y(share / 100), str(share)) for share in (0, 25, 50, 75, 100)),
        x(CALIBRATED) if inside else None,
    )


def _whole_or_all(strengths: Sequence[float]) -> list[float]:
    """Return halves, if there are enough of them, to label an axis without crowding."""
    halves = [s for s in strengths if float(2 * s).is_integer()]
    return halves if len(halves) > 1 else list(strengths)
