"""How measured values are spread: percentiles, and a histogram for a plot."""

from __future__ import annotations

import bisect
import math
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that `percent` of them do not exceed; None where they are too few to tell it.

    Too few is where fewer than one of them may lie above: the answer would be the largest, whatever was asked for.
    """
    rank = math.ceil(len(values) * percent / 100)
    if not values or (rank == len(values) and percent > 50):
        return None
    return sorted(values)[rank - 1]


def mid(values: Iterable[float | None]) -> float | None:
    """Return the median of what rounds have found; None where one of them found nothing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.median(known) if known and len(known) == len(found) else None


def histogram(values: Iterable[float], edges: Sequence[float]) -> dict[str, Any]:
    """Return how many values lie from each edge to before the next one; beyond the last edge, in the last count."""
    counts = [0] * len(edges)
    for value in values:
        counts[max(0, bisect.bisect_right(edges, value) - 1)] += 1
    return {"edges": list(edges), "counts": counts}
