"""If relays are killed, or the API is down longer than messages are leased, no event is lost and few are sent twice.

The tests run the code of `acceptance.fleet.crash` with fewer events, on the real command and a real broker.
"""

from __future__ import annotations

import sys

import pytest

from acceptance.fleet.crash import BROKERS, crash, outage

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.needs_server("redis-server"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL"),
]


def test_killed_twice() -> None:
    """If a relay is killed twice, nothing is lost or out of order, and only events in flight are sent twice."""
    found = crash(BROKERS["redis"], events=6_000, bad=3, kills=2)

    assert (found["lost"], found["dead"], found["dead_wrong"], found["status"]) == (0, 6, 0, 0)
    assert (found["overlaps"], found["disordered"]) == (0, 0)
    assert found["duplicates"] <= 2 * 500 * 8


def test_outage_with_two_relays() -> None:
    """If the API is down for longer than the lease of messages, two relays neither lose an event nor send one twice."""
    found = outage(BROKERS["redis"], events=6_000, bad=3, lease=4.0, down=6.0)

    assert (found["lost"], found["duplicates"], found["dead"], found["dead_wrong"]) == (0, 0, 6, 0)
    assert found["status"] == 0
