"""Scenarios: an API that is down, or overloaded, for everybody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

from _fault import Fault
from _scenario import scenario
from _stage import SMALL

from retailrocket_async import RetryPolicy

if TYPE_CHECKING:
    from _stage import Stage

_OUTAGE = 8.0
_PROBED = RetryPolicy(max_backoff=4.0)
"""As by default, but that the return is noticed within the scenario."""


@scenario("down-refused", faults=())
@scenario("down-503", faults=(Fault(status=503),))
@scenario("down-stalls", faults=(Fault("stall"),))
async def down(stage: Stage, faults: tuple[Fault, ...]) -> None:
    """While the API is down it is asked seldom, and when it is back everything is delivered at full speed."""
    client = stage.open(retry=_PROBED)
    await stage.stream(1.0, 1000)
    begun_at = stage.now()
    if faults:
        await stage.behave(*faults)
    else:
        await stage.server.shut(_OUTAGE)
    await stage.stream(_OUTAGE, 1000)
    stage.expect(client.stats().state == "down", f"sending is {client.stats().state}")
    await stage.mend()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    # In its second half the API has been down for long, and one probe at a time is made.
    asked = len(await stage.arrivals(begun_at + _OUTAGE / 2, stage.mended_at))
    stage.expect(asked <= 8, f"{asked} requests in {_OUTAGE / 2:.0f} s")
    stage.expect_back_within(_PROBED.max_backoff + 1.0)


@scenario("429-for-a-while")
async def throttled(stage: Stage) -> None:
    """Refusals for the limit's sake make everybody pause, longer each time, and lose nothing."""
    client = stage.open()
    await stage.stream(1.0, 1000)
    begun_at = stage.now()
    await stage.behave(Fault(status=429))
    await stage.stream(4.0, 1000)
    await stage.mend()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    asked = len(await stage.arrivals(begun_at, stage.mended_at))
    stage.expect(asked <= 24, f"{asked} requests were refused")
    # The third pause lasts 4 s.
    stage.expect_back_within(5.0)


@scenario("retry-after", date=False)
@scenario("retry-after-date", date=True)
async def told_to_wait(stage: Stage, *, date: bool) -> None:
    """Where the server says how long to wait, nobody asks before."""
    seconds = 3
    # A date is in whole seconds, and this one must not come earlier than the number would.
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds + 2)
    header = format_datetime(moment, usegmt=True) if date else str(seconds)
    client = stage.open()
    await stage.stream(1.0, 1000)
    await stage.behave(Fault(status=429, retry_after=header, times=1))
    await stage.stream(2.0, 1000)
    stage.mended()
    await stage.close()
    arrivals = await stage.arrivals()
    [refused_at] = [arrival.at for arrival in arrivals if arrival.answer == "429"]
    # What was on its way already cannot be called back.
    early = sum(refused_at + 0.1 < arrival.at < refused_at + seconds - 0.1 for arrival in arrivals)
    stage.expect(early == 0, f"{early} requests before the time")
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")


@scenario("half-the-limit")
async def shared_limit(stage: Stage) -> None:
    """Where others use the half of the limit, the pace adapts: few refusals, and nothing is lost."""
    await stage.behave(limit=25)
    client = stage.open(batching=SMALL)
    await stage.burst(2500)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    refused = sum(arrival.answer == "429" for arrival in await stage.arrivals())
    stage.expect(refused <= stats.requests / 10, f"{refused} of {stats.requests} requests were refused")
