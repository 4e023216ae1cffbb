"""Figures from samples: quartiles, percentiles, fairness, and one thing measured against another of the same round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["fairness", "overhead", "percentile", "quartiles", "ratio"]


def percentile(samples: Sequence[float], share: float) -> float:
    """The least sample that so large a share (0 to 1) of all does not exceed. Raises ValueError without samples."""
    if not samples:
        raise ValueError("there is no percentile of nothing: take at least one sample")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile; of one sample, that sample twice."""
    if len(samples) < 2:
        return samples[0], samples[0]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, third


def fairness(counts: Sequence[int]) -> float:
    """How evenly so many workers were served: the least count by the greatest; 1.0 is fair, 0.0 is somebody starved."""
    most = max(counts, default=0)
    return min(counts) / most if most else 0.0


def ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """The median of one's samples by the other's, each by that of its own round.

    Raises ValueError where the rounds are not the same.
    """
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def overhead(own: Sequence[float], other: Sequence[float]) -> float:
    """By how much one exceeds the other: the median of the differences within each round."""
    return statistics.median(a - b for a, b in zip(own, other, strict=True))
