"""The shared limit from end to end, in processes of its own: a short form of what `benchmarks/fleet.py` measures.

Only what is safe is asserted: how much of the limit is used, and how evenly, depends on the machine.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.needs_server("redis-server"),
    pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only"),
]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks; they lie beside each other, in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def limit(load: Any) -> Any:
    """What measures the shared limit."""
    return load("_fleet_limit")


def assert_kept(limit: Any, run: Any, *, at_the_edges: float = 1.0) -> None:
    """No second was overfull, where the machine was quiet enough to judge by."""
    assert run.last > 0
    if run.quiet:
        assert run.worst <= limit.LIMIT.requests * at_the_edges


def test_four_processes_keep_one_limit(limit: Any) -> None:
    """Four processes whose clocks differ by minutes keep the limit together, each with its part of it."""
    run = limit.in_quiet(3.0, skews=limit.SKEWS)

    assert run.least > 0
    assert_kept(limit, run)


def test_flushed_scripts_change_nothing(limit: Any) -> None:
    """A Redis that forgets its scripts in mid-run changes nothing."""
    assert_kept(limit, limit.measure(3.0, [limit.Event(part, limit.flush_scripts) for part in (0.4, 0.7)]))


def test_a_killed_redis_is_survived(limit: Any) -> None:
    """Requests leave when Redis is back, empty, and no second is overfull at the edges."""
    run = limit.measure(7.0, [limit.Event(0.2, limit.kill), limit.Event(0.4, limit.start)])

    assert run.records[0].startswith("Redis does not answer (ConnectionError)")
    assert_kept(limit, run, at_the_edges=1.04)


def test_three_replicas_of_a_shop_deliver_all(load: Any) -> None:
    """Three replicas of a web shop under load deliver every event, under one limit."""
    shops = load("_fleet_shops")
    for _ in range(3):
        run = shops.measure(3.0)
        assert run.recorded == run.delivered == run.pages > 0
        assert run.least > 0
        # Nobody measures here how quiet the machine was: one run of three must be.
        if run.worst <= shops.LIMIT and run.refused == 0:
            return
    pytest.fail(f"the limit was not kept: {run}")
