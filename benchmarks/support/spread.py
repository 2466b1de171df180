"""Summarises measured values: percentiles, the median of several rounds, and a histogram for a plot."""

from __future__ import annotations

import bisect
import math
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that `percent` of the values do not exceed, or None if there are too few values.

    There are too few values if `percent` is above 50 and the result would simply be the largest value.
    """
    rank = math.ceil(len(values) * percent / 100)
    if not values or (rank == len(values) and percent > 50):
        return None
    return sorted(values)[rank - 1]


def median_of_rounds(values: Iterable[float | None]) -> float | None:
    """Return the median of one value per round, or None if any round has no value."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.median(known) if known and len(known) == len(found) else None


def histogram(values: Iterable[float], edges: Sequence[float]) -> dict[str, Any]:
    """Return how many values lie between each edge and the next one; the last count has all values above the last edge.

    Values below the first edge are in the first count.
    """
    counts = [0] * len(edges)
    for value in values:
        counts[max(0, bisect.bisect_right(edges, value) - 1)] += 1
    return {"edges": list(edges), "counts": counts}
