"""Tests of a rate limit that several processes share: short runs of `acceptance.fleet.limit` and `.shops`.

It depends on the machine how much of the limit is used, and how many requests each process sends, so the tests do not
check these numbers.
"""

from __future__ import annotations

import sys

import pytest

from acceptance.fleet import limit

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.needs_server("redis-server"),
    pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only"),
]


def assert_kept(run: limit.Run, *, excess: float = 1.0) -> None:
    """If the machine was quiet in the run, assert that no second had more requests than the limit times `excess`."""
    assert run.last > 0
    if run.quiet:
        assert run.worst <= limit.LIMIT.requests * excess


def test_four_processes_keep_one_limit() -> None:
    """If the clocks of four processes differ by minutes, the processes together still keep the limit."""
    run = limit.in_quiet(3.0, skews=limit.SKEWS)

    assert run.least > 0
    assert_kept(run)


def test_flushed_scripts_change_nothing() -> None:
    """If Redis forgets its scripts during a run, the limit is still kept."""
    assert_kept(limit.measure(3.0, [limit.Event(part, limit.flush_scripts) for part in (0.4, 0.7)]))


def test_a_killed_redis_is_survived() -> None:
    """If Redis is killed and restarted empty, requests continue, and no second has over 4 % more than the limit."""
    run = limit.measure(7.0, [limit.Event(0.2, limit.kill), limit.Event(0.4, limit.start)])

    assert run.records[0].startswith("Redis does not answer (ConnectionError)")
    assert_kept(run, excess=1.04)


def test_three_replicas_of_a_shop_deliver_all() -> None:
    """If three replicas of a web shop under load share one limit, every event is delivered."""
    from acceptance.fleet import shops

    for _ in range(3):
        run = shops.measure(3.0)
        assert run.recorded == run.delivered == run.pages > 0
        assert run.least > 0
        # This run does not measure whether the machine was busy, so it is enough if one of three runs keeps the limit.
        if run.worst <= shops.LIMIT and run.refused == 0:
            return
    pytest.fail(f"the limit was not kept: {run}")
