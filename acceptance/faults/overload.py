"""Scenarios with more events than the limit lets out, and closes with too little time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from acceptance.faults.scenario import scenario
from acceptance.faults.stage import SMALL
from acceptance.support.fault import Fault
from retailrocket_async import Abandoned, Buffer, Dropped

if TYPE_CHECKING:
    from acceptance.faults.stage import Stage


@scenario("overflow-wait", policy="wait")
@scenario("overflow-raise", policy="raise")
@scenario("overflow-drop-newest", policy="drop_newest")
@scenario("overflow-drop-oldest", policy="drop_oldest")
@scenario("overflow-shed", policy="shed")
async def overflow(stage: Stage, policy: Literal["wait", "raise", "drop_newest", "drop_oldest", "shed"]) -> None:
    """Too many events wait, are refused or are dropped, as the overflow policy says, and each has its outcome."""
    client = stage.open(batching=SMALL, buffer=Buffer(max_events=1000, overflow=policy))
    await stage.stream(2.0, 3000)
    await stage.close()
    stats = client.stats()
    refused = stage.refused
    stage.expect((refused > 0) is (policy == "raise"), f"{refused} refused")
    stage.expect((stats.dropped > 0) is (policy not in ("wait", "raise")), f"{stats.dropped} dropped")
    stage.expect(stats.delivered + stats.dropped == stats.tracked, "some are neither delivered nor dropped")
    # While events wait, batches should leave full.
    each = stats.delivered / stats.requests
    stage.expect(each >= 0.75 * SMALL.max_events, f"only {each:.0f} events in a request of {SMALL.max_events}")
    reasons = {outcome.reason for outcome in stage.outcomes() if isinstance(outcome, Dropped)}
    stage.expect(reasons <= {"overflow"}, f"dropped for {sorted(reasons)}")
    if policy == "shed":
        orders = sum(isinstance(outcome, Dropped) for outcome in stage.outcomes("order"))
        stage.expect(orders == 0, f"{orders} orders shed while there were views to shed")


@scenario("expired")
async def expired(stage: Stage) -> None:
    """Events that exceed `max_age` are dropped, and younger events are delivered when the API is back."""
    client = stage.open(buffer=Buffer(max_age=1.0))
    await stage.stream(0.5, 1000)
    await stage.server.shut(3.0)
    await stage.stream(3.0, 1000)
    stage.note_repair()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.dropped + stats.abandoned > 0, "none expired")
    reasons = {outcome.reason for outcome in stage.outcomes() if isinstance(outcome, Dropped | Abandoned)}
    stage.expect(reasons <= {"expired"}, f"ended for {sorted(reasons)}")


@scenario("close-stalled", stalled=True)
@scenario("close-down", stalled=False)
async def close_without_answer(stage: Stage, *, stalled: bool) -> None:
    """A close ends at its deadline, whatever the server does, and reports the outcome of every event."""
    stage.open(timeout=10.0)
    await stage.stream(1.0, 1000)
    if stalled:
        await stage.behave(Fault("stall", record=True))
    else:
        await stage.server.shut(60.0)
    await stage.stream(1.0, 1000)
    begun_at = stage.now()
    report = await stage.close(2.0)
    took = stage.now() - begun_at
    stage.expect(took < 2.8, f"the close took {took:.1f} s")
    ended = report.stats.abandoned + report.stats.dropped
    stage.expect(0 < ended == len(report.undelivered), f"the report names {len(report.undelivered)} of {ended}")


@scenario("close-overloaded")
async def close_overloaded(stage: Stage) -> None:
    """A close with too little time sends what it can and drops the rest."""
    stage.open(batching=SMALL)
    await stage.burst(20_000)
    begun_at = stage.now()
    report = await stage.close(2.0)
    took = stage.now() - begun_at
    stage.expect(took < 2.8, f"the close took {took:.1f} s")
    stage.expect(report.stats.delivered > 1500, f"only {report.stats.delivered} delivered in 2 s")
    stage.expect(report.stats.dropped > 15_000, f"{report.stats.dropped} dropped")
