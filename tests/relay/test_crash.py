"""Relays killed in mid-run, and an API that is down for longer than the lease: nothing lost, and little twice.

The shortened form of the section "crash" of benchmarks/fleet.py: the same code, the real command and a real broker.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.needs_server("redis-server"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL"),
]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The section's module; the benchmarks lie beside each other, in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_fleet_crash")


def test_killed_twice(harness: Any) -> None:
    """A relay killed twice loses nothing, repeats no more than was on its way, and makes the right dead letters."""
    found = harness.crash(harness.BROKERS["redis"], events=6_000, bad=3, kills=2)

    assert (found["lost"], found["dead"], found["dead_wrong"], found["status"]) == (0, 6, 0, 0)
    assert found["duplicates"] <= 2 * 500 * 8


def test_outage_with_two_relays(harness: Any) -> None:
    """An API that is down for longer than the lease makes two relays neither lose nor repeat anything."""
    found = harness.outage(harness.BROKERS["redis"], events=6_000, bad=3, lease=4.0, down=6.0)

    assert (found["lost"], found["duplicates"], found["dead"], found["dead_wrong"]) == (0, 0, 6, 0)
    assert found["status"] == 0
