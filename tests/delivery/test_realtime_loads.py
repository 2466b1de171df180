"""Under steady loads `Batching.realtime` does not oscillate and costs no throughput; `benchmarks.realtime` measures it.

The real engine, buffer and limiter run on a virtual clock, and the server answers as fast as the API.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.realtime import measure
from retailrocket_async._delivery.realtime import FIRST_DWELL, LONGEST_DWELL

SECONDS = 64.0


@pytest.mark.parametrize("rate", [5, 25, 40])
def test_below_the_limit_every_event_is_sent_alone(rate: int) -> None:
    """If clearly fewer events come than requests are allowed, each event is sent alone, and most without a wait."""
    figures = measure(rate, SECONDS)

    assert (0, 1.0, 0, 0) == (figures.changes, figures.alone, figures.overlaps, figures.out_of_order)
    assert sorted(figures.answered)[len(figures.answered) // 2] < 0.101


@pytest.mark.parametrize("rate", [48, 52, 60, 100])
def test_near_the_limit_changes_are_rare(rate: int) -> None:
    """If about as many events come as requests are allowed, the mode changes rarely; outcomes come within 5 s."""
    figures = measure(rate, SECONDS)
    trials = math.log2(LONGEST_DWELL / FIRST_DWELL) + SECONDS / LONGEST_DWELL

    assert (True, 0, 0) == (figures.changes <= 2 * trials + 1, figures.overlaps, figures.out_of_order)
    assert max(figures.answered) < 5.0


def test_far_above_the_limit_batches_stay() -> None:
    """If far more events come than requests are allowed, events are soon sent in batches, and this does not end."""
    figures = measure(1_500, 40.0)

    assert (1, 0, 0) == (figures.changes, figures.overlaps, figures.out_of_order)


def test_the_option_costs_no_throughput() -> None:
    """If 24,000 events a second come, `realtime=True` delivers at least 98 % as many events as `realtime=False`."""
    default, realtime = (measure(24_000, 6.0, realtime=value) for value in (False, True))

    assert realtime.rate >= 0.98 * default.rate
    assert (0, 0) == (realtime.overlaps, realtime.out_of_order)
