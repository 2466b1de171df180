"""Makes the visitors of a busy shop: some are busier than others, and none makes a large part of the events."""

from __future__ import annotations

import random
from itertools import accumulate

_SKEW = 0.23
"""The visitor of rank r makes events in proportion to ``r ** -_SKEW``: the busiest of 4,000 makes 0.13 % of them."""


def shares(visitors: int) -> list[float]:
    """Return, for each visitor, the fraction of all events that this visitor makes, the largest first; the sum is 1."""
    weights = [rank**-_SKEW for rank in range(1, visitors + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def stream(visitors: int, events: int) -> list[str]:
    """Return the ids of the visitors of `events` events, in order; the same arguments give the same result."""
    names = [f"visitor{number:06d}" for number in range(visitors)]
    return random.Random(0).choices(names, cum_weights=list(accumulate(shares(visitors))), k=events)
