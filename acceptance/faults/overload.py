"""Scenarios with more events than the request limit allows, and with closes that have too little time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from acceptance.faults.scenario import scenario
from acceptance.faults.testbed import SMALL
from acceptance.support.fault import Fault
from retailrocket_async import Abandoned, Buffer, Dropped

if TYPE_CHECKING:
    from acceptance.faults.testbed import Testbed


@scenario("overflow-wait", policy="wait")
@scenario("overflow-raise", policy="raise")
@scenario("overflow-drop-newest", policy="drop_newest")
@scenario("overflow-drop-oldest", policy="drop_oldest")
@scenario("overflow-shed", policy="shed")
async def overflow(testbed: Testbed, policy: Literal["wait", "raise", "drop_newest", "drop_oldest", "shed"]) -> None:
    """If there are too many events, they wait, are refused or are dropped, as the overflow policy says."""
    client = testbed.open(batching=SMALL, buffer=Buffer(max_events=1000, overflow=policy))
    await testbed.stream(2.0, 3000)
    await testbed.close()
    stats = client.stats()
    refused = testbed.refused
    testbed.expect((refused > 0) is (policy == "raise"), f"{refused} refused")
    testbed.expect((stats.dropped > 0) is (policy not in ("wait", "raise")), f"{stats.dropped} dropped")
    testbed.expect(stats.delivered + stats.dropped == stats.tracked, "some are neither delivered nor dropped")
    # While events wait, all batches should be full.
    each = stats.delivered / stats.requests
    testbed.expect(each >= 0.75 * SMALL.max_events, f"only {each:.0f} events in a request of {SMALL.max_events}")
    reasons = {outcome.reason for outcome in testbed.outcomes() if isinstance(outcome, Dropped)}
    testbed.expect(reasons <= {"overflow"}, f"dropped for {sorted(reasons)}")
    if policy == "shed":
        orders = sum(isinstance(outcome, Dropped) for outcome in testbed.outcomes("order"))
        testbed.expect(orders == 0, f"{orders} orders shed while there were views to shed")


@scenario("expired")
async def expired(testbed: Testbed) -> None:
    """If events are older than `max_age`, they are dropped; younger events are delivered when the API is back."""
    client = testbed.open(buffer=Buffer(max_age=1.0))
    await testbed.stream(0.5, 1000)
    await testbed.server.shut(3.0)
    await testbed.stream(3.0, 1000)
    testbed.note_repair()
    await testbed.stream(1.0, 1000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.dropped + stats.abandoned > 0, "none expired")
    reasons = {outcome.reason for outcome in testbed.outcomes() if isinstance(outcome, Dropped | Abandoned)}
    testbed.expect(reasons <= {"expired"}, f"ended for {sorted(reasons)}")


@scenario("close-stalled", stalled=True)
@scenario("close-down", stalled=False)
async def close_without_answer(testbed: Testbed, *, stalled: bool) -> None:
    """If the server does not answer, a close still ends at its deadline and reports every event's outcome."""
    testbed.open(timeout=10.0)
    await testbed.stream(1.0, 1000)
    if stalled:
        await testbed.behave(Fault("stall", record=True))
    else:
        await testbed.server.shut(60.0)
    await testbed.stream(1.0, 1000)
    begun_at = testbed.now()
    report = await testbed.close(2.0)
    took = testbed.now() - begun_at
    testbed.expect(took < 2.8, f"the close took {took:.1f} s")
    ended = report.stats.abandoned + report.stats.dropped
    testbed.expect(0 < ended == len(report.undelivered), f"the report names {len(report.undelivered)} of {ended}")


@scenario("close-overloaded")
async def close_overloaded(testbed: Testbed) -> None:
    """If a close has too little time, it sends events until its deadline and drops the events that are left."""
    testbed.open(batching=SMALL)
    await testbed.burst(20_000)
    begun_at = testbed.now()
    report = await testbed.close(2.0)
    took = testbed.now() - begun_at
    testbed.expect(took < 2.8, f"the close took {took:.1f} s")
    testbed.expect(report.stats.delivered > 1500, f"only {report.stats.delivered} delivered in 2 s")
    testbed.expect(report.stats.dropped > 15_000, f"{report.stats.dropped} dropped")
