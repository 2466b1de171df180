"""Scenarios with an API that is down or overloaded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.faults.stage import SMALL
from acceptance.support.fault import Fault
from retailrocket_async import RetryPolicy

if TYPE_CHECKING:
    from acceptance.faults.stage import Stage

_OUTAGE = 8.0
_PROBED = RetryPolicy(max_backoff=4.0)
"""The default policy with a shorter `max_backoff`, so that the recovery is noticed within the scenario."""


@scenario("down-refused", faults=())
@scenario("down-503", faults=(Fault(status=503),))
@scenario("down-stalls", faults=(Fault("stall"),))
async def down(stage: Stage, faults: tuple[Fault, ...]) -> None:
    """While the API is down, few requests are made; when it is back, everything is delivered at full speed."""
    client = stage.open(retry=_PROBED)
    await stage.stream(1.0, 1000)
    begun_at = stage.now()
    if faults:
        await stage.behave(*faults)
    else:
        await stage.server.shut(_OUTAGE)
    await stage.stream(_OUTAGE, 1000)
    stage.expect(client.stats().state == "down", f"sending is {client.stats().state}")
    await stage.repair()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    # In the second half of the outage only single probes are sent.
    requests = len(await stage.arrivals(begun_at + _OUTAGE / 2, stage.repaired_at))
    stage.expect(requests <= 8, f"{requests} requests in {_OUTAGE / 2:.0f} s")
    stage.expect_back_within(_PROBED.max_backoff + 1.0)


@scenario("429-for-a-while")
async def throttled(stage: Stage) -> None:
    """After a 429 all requests pause, longer each time, and no event is lost."""
    client = stage.open()
    await stage.stream(1.0, 1000)
    begun_at = stage.now()
    await stage.behave(Fault(status=429))
    await stage.stream(4.0, 1000)
    await stage.repair()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    requests = len(await stage.arrivals(begun_at, stage.repaired_at))
    stage.expect(requests <= 24, f"{requests} requests were refused")
    # The third pause lasts 4 s.
    stage.expect_back_within(5.0)


@scenario("retry-after", date=False)
@scenario("retry-after-date", date=True)
async def retry_after(stage: Stage, *, date: bool) -> None:
    """If the server sends ``Retry-After``, no request is made before that time."""
    seconds = 3
    # A date has whole seconds, so it is later than the number, never earlier.
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds + 2)
    header = format_datetime(moment, usegmt=True) if date else str(seconds)
    client = stage.open()
    await stage.stream(1.0, 1000)
    await stage.behave(Fault(status=429, retry_after=header, times=1))
    await stage.stream(2.0, 1000)
    stage.note_repair()
    await stage.close()
    arrivals = await stage.arrivals()
    [refused_at] = [arrival.at for arrival in arrivals if arrival.answer == "429"]
    # Requests in flight at the refusal may still arrive.
    early = sum(refused_at + 0.1 < arrival.at < refused_at + seconds - 0.1 for arrival in arrivals)
    stage.expect(early == 0, f"{early} requests before the time of Retry-After")
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")


@scenario("half-the-limit")
async def shared_limit(stage: Stage) -> None:
    """If other clients use half of the limit, the rate adapts: few requests are refused, and no event is lost."""
    await stage.behave(limit=25)
    client = stage.open(batching=SMALL)
    await stage.burst(2500)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    refused = sum(arrival.answer == "429" for arrival in await stage.arrivals())
    stage.expect(refused <= stats.requests / 10, f"{refused} of {stats.requests} requests were refused")
