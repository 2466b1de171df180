"""Scenarios with an API that is down or overloaded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.faults.testbed import SMALL
from acceptance.support.fault import Fault
from retailrocket_async import RetryPolicy

if TYPE_CHECKING:
    from acceptance.faults.testbed import Testbed

_OUTAGE = 8.0
_PROBED = RetryPolicy(max_backoff=4.0)
"""The default policy with a shorter `max_backoff`, so that the recovery is noticed within the scenario."""


@scenario("down-refused", faults=())
@scenario("down-503", faults=(Fault(status=503),))
@scenario("down-stalls", faults=(Fault("stall"),))
async def down(testbed: Testbed, faults: tuple[Fault, ...]) -> None:
    """While the API is down, few requests are made; when it is back, all events are delivered at full speed."""
    client = testbed.open(retry=_PROBED)
    await testbed.stream(1.0, 1000)
    begun_at = testbed.now()
    if faults:
        await testbed.behave(*faults)
    else:
        await testbed.server.shut(_OUTAGE)
    await testbed.stream(_OUTAGE, 1000)
    testbed.expect(client.stats().state == "down", f"sending is {client.stats().state}")
    await testbed.repair()
    await testbed.stream(1.0, 1000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    # In the second half of the outage only single probes are sent.
    requests = len(await testbed.arrivals(begun_at + _OUTAGE / 2, testbed.repaired_at))
    testbed.expect(requests <= 8, f"{requests} requests in {_OUTAGE / 2:.0f} s")
    testbed.expect_back_within(_PROBED.max_backoff + 1.0)


@scenario("429-for-a-while")
async def throttled(testbed: Testbed) -> None:
    """After each 429 all requests pause, each time for longer, and no event is lost."""
    client = testbed.open()
    await testbed.stream(1.0, 1000)
    begun_at = testbed.now()
    await testbed.behave(Fault(status=429))
    await testbed.stream(4.0, 1000)
    await testbed.repair()
    await testbed.stream(1.0, 1000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    requests = len(await testbed.arrivals(begun_at, testbed.repaired_at))
    testbed.expect(requests <= 24, f"{requests} requests were refused")
    # The pauses last 1, 2 and 4 s, so the client may still pause for almost 4 s after the repair.
    testbed.expect_back_within(5.0)


@scenario("retry-after", date=False)
@scenario("retry-after-date", date=True)
async def retry_after(testbed: Testbed, *, date: bool) -> None:
    """If the server sends ``Retry-After``, no request is made before that time."""
    seconds = 3
    # A date has whole seconds only, so two seconds are added: the date must be at least `seconds` after the refusal.
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds + 2)
    header = format_datetime(moment, usegmt=True) if date else str(seconds)
    client = testbed.open()
    await testbed.stream(1.0, 1000)
    await testbed.behave(Fault(status=429, retry_after=header, times=1))
    await testbed.stream(2.0, 1000)
    testbed.note_repair()
    await testbed.close()
    arrivals = await testbed.arrivals()
    [refused_at] = [arrival.at for arrival in arrivals if arrival.answer == "429"]
    # Requests in flight at the refusal may still arrive.
    early = sum(refused_at + 0.1 < arrival.at < refused_at + seconds - 0.1 for arrival in arrivals)
    testbed.expect(early == 0, f"{early} requests before the time of Retry-After")
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")


@scenario("half-the-limit")
async def shared_limit(testbed: Testbed) -> None:
    """If other clients use half of the limit, the rate adapts: few requests are refused, and no event is lost."""
    await testbed.behave(limit=25)
    client = testbed.open(batching=SMALL)
    await testbed.burst(2500)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    refused = sum(arrival.answer == "429" for arrival in await testbed.arrivals())
    testbed.expect(refused <= stats.requests / 10, f"{refused} of {stats.requests} requests were refused")
