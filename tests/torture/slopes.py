"""Whether something grows: the slope of a straight line through measurements, by least squares. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth per unit of x; 0 for fewer than two different x."""
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def settled(points: Sequence[tuple[float, float]], part: float = 0.25) -> list[tuple[float, float]]:
    """But for the beginning, in which everything is filled for the first time."""
    return list(points[int(len(points) * part) :])
