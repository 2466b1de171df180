"""Scenarios with answers that are missing, or do not say whether the events were recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.support.fault import Fault
from retailrocket_async import Abandoned, Batching, Order, RetryPolicy

if TYPE_CHECKING:
    from acceptance.faults.testbed import Testbed
    from acceptance.support.fault import Kind

_OFTEN = 0.3
_STREAM = Batching(max_events=20, linger=0.02)
"""Small batches: the stream of events makes thirty requests a second, so the fault hits many requests."""

_QUICK = RetryPolicy(initial_backoff=0.1, max_backoff=1.0)
"""Short waits between retries, for a fault that hits one request in three."""


async def _failing_at_times(testbed: Testbed, *faults: Fault) -> None:
    await testbed.behave(*(fault._replace(probability=_OFTEN / len(faults)) for fault in faults))
    client = testbed.open(batching=_STREAM, retry=_QUICK)
    await testbed.stream(1.5, 600)
    await testbed.repair()
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    titles = {fault.title for fault in faults}
    testbed.expect(any(arrival.answer in titles for arrival in await testbed.arrivals()), "no fault hit a request")


@scenario("stall-after", kind="stall", record=True)
@scenario("stall-before", kind="stall", record=False)
@scenario("garbage-after", kind="garbage", record=True)
@scenario("garbage-before", kind="garbage", record=False)
@scenario("cut-head-after", kind="cut_head", record=True)
@scenario("cut-head-before", kind="cut_head", record=False)
@scenario("cut-body", kind="cut_body", record=True)
@scenario("close-after", kind="close", record=True)
@scenario("close-before", kind="close", record=False)
@scenario("reset-after", kind="reset", record=True)
@scenario("reset-before", kind="reset", record=False)
@scenario("idle-close", kind="idle_close", record=False)
async def no_clear_answer(testbed: Testbed, kind: Kind, *, record: bool) -> None:
    """If a connection fails, no event is lost, and if an event is recorded twice, its outcome says so."""
    await _failing_at_times(testbed, Fault(kind, record=record))


@scenario("5xx-after", record=True)
@scenario("5xx-before", record=False)
async def server_error(testbed: Testbed, *, record: bool) -> None:
    """If the server answers 5xx, no event is lost, and if an event is recorded twice, its outcome says so."""
    await _failing_at_times(testbed, *(Fault(status=status, record=record) for status in (500, 502, 503, 504)))


@scenario("4xx-to-retry")
async def not_now(testbed: Testbed) -> None:
    """If the server asks the client to retry (408, 425, 429), no event is lost and none is recorded twice."""
    await _failing_at_times(testbed, *(Fault(status=status) for status in (408, 425, 429)))
    duplicated = testbed.reconcile().duplicated
    testbed.expect(duplicated == 0, f"{duplicated} duplicated")


@scenario("at-most-once-5xx", fault=Fault(status=500, record=True))
@scenario("at-most-once-stall", fault=Fault("stall", record=True))
@scenario("at-most-once-reset", fault=Fault("reset", record=True))
async def at_most_once(testbed: Testbed, fault: Fault) -> None:
    """Orders are recorded at most once, even if the other events of their batch are sent again."""
    await testbed.behave(fault._replace(probability=_OFTEN))
    retry = RetryPolicy(initial_backoff=0.1, max_backoff=1.0, at_most_once=(Order,))
    client = testbed.open(batching=_STREAM, retry=retry)
    await testbed.stream(1.5, 600)
    await testbed.repair()
    await testbed.close()
    twice = await testbed.recorded_twice()
    testbed.expect(twice["order"] == 0, f"{twice['order']} orders recorded twice")
    testbed.expect(sum(twice.values()) > 0, "nothing else was sent again")
    given_up = [outcome for outcome in testbed.outcomes("order") if isinstance(outcome, Abandoned)]
    reasons = {outcome.reason for outcome in given_up}
    testbed.expect(reasons == {"at_most_once"}, f"orders were abandoned for {sorted(reasons)}")
    stats = client.stats()
    testbed.expect(stats.abandoned == len(given_up), f"{stats.abandoned - len(given_up)} abandoned that are no orders")
