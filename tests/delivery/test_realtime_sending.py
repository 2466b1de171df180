"""With `Batching.realtime` events are sent one by one while permits are free, and in batches while permits are scarce.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop that the counters add up.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Abandoned, Batching, Delivered, Observer, RateLimit, Rejected, RetryPolicy
from retailrocket_async._delivery.rate_limiter import LocalLimiter
from retailrocket_async._events.codec import BATCH_PATH
from retailrocket_async._events.models import AddToBasket, Order
from tests.support.engine_state import buffer_of
from tests.support.fakes import (
    OK,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    Request,
    ScriptedTransport,
    Step,
    event,
    make_client,
    near,
    now,
    status,
)

if TYPE_CHECKING:
    from retailrocket_async import ObservedRequest
    from tests.support.virtual_time import CheckedLoop

REALTIME = Batching(realtime=True)


def answers(request: Request) -> Step:
    """Return an answer that is as fast as the API: after 1.5 s for a batch, after 0.1 s for a single event."""
    return Step(latency=1.5 if request.path == BATCH_PATH else 0.1)


def scarce(requests: int = 2) -> LocalLimiter:
    """Return a limiter that grants only this number of permits a second."""
    return LocalLimiter(RateLimit(requests=requests, burst=1, jitter=0.0))


def paths(transport: ScriptedTransport) -> list[str]:
    """Return the paths of all requests made, in order."""
    return [request.path for request in transport.requests]


# --- permits are free ---


async def test_an_event_leaves_at_once_to_its_own_endpoint(virtual_clock: CheckedLoop) -> None:
    """If permits are free, each event is sent without linger to its own endpoint, alone in the body of the request."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    await asyncio.sleep(1.0)
    outcome = await (await engine.track(1, "ann"))
    await asyncio.sleep(1.0)
    await (await engine.track(2, "ann", AddToBasket))

    assert [(near(1.0), "view"), (near(2.1), "addToBasket")] == [
        (each.at, each.path) for each in engine.transport.requests
    ]
    assert json.loads(engine.transport.requests[0].body)["productId"] == 1
    assert (Delivered, 1) == (type(outcome), outcome.attempts)


async def test_a_visitors_next_event_waits_for_the_answer(virtual_clock: CheckedLoop) -> None:
    """If a visitor has several events, each waits for the answer to the previous one; other visitors do not wait."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    for number in (1, 2, 3):
        await engine.track(number, "ann")
    await engine.track(4, "bob")
    await engine.flush()

    assert [(near(0.0), [1]), (near(0.0), [4]), (near(0.1), [2]), (near(0.2), [3])] == [
        (each.at, each.numbers) for each in engine.transport.requests
    ]


async def test_many_events_of_one_visitor_leave_in_a_batch(virtual_clock: CheckedLoop) -> None:
    """If one visitor has 15 waiting events, they leave in one batch, because single events would take longer."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    for number in range(100):
        await engine.track(number, "crawler")
    await engine.track(100, "ann")
    await engine.flush()

    assert engine.transport.recorded_numbers[0] == 100
    assert sorted(engine.transport.recorded_numbers) == list(range(101))
    assert [BATCH_PATH, "view"] == paths(engine.transport)
    assert now() == near(1.5)


async def test_a_crawler_leaves_others_their_own_requests(virtual_clock: CheckedLoop) -> None:
    """If a crawler's events leave in batches, other visitors' events still go to their own endpoints at once."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)

    async def crawl() -> None:
        for number in range(1000, 2000):
            await engine.track(number, "crawler")
            await asyncio.sleep(0.005)

    crawler = asyncio.create_task(crawl())
    for number in range(20):
        asked_at = now()
        await (await engine.track(number))
        assert now() - asked_at == near(0.1)
        await asyncio.sleep(0.1)
    await crawler
    await engine.flush()
    crawled = [number for number in engine.transport.recorded_numbers if number >= 1000]

    assert crawled == list(range(1000, 2000))
    assert len(engine.transport.requests) < 20 + 15


# --- permits are scarce ---


async def test_batches_begin_after_half_a_second(virtual_clock: CheckedLoop) -> None:
    """If an event has waited 0.5 s for its permit, all waiting events leave in one batch."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME, limiter=scarce(4))
    await engine.track_all(range(50))
    await engine.flush()

    # Permits are granted every 0.25 s, the first one at once.
    assert [(near(0.0), "view", 1), (near(0.25), "view", 1), (near(0.5), BATCH_PATH, 48)] == [
        (each.at, each.path, len(each.events)) for each in engine.transport.requests
    ]


async def test_many_visitors_leave_in_a_batch(virtual_clock: CheckedLoop) -> None:
    """If more than 100 visitors wait, their events leave in a batch, even if a permit is free."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    await engine.track_all(range(101))
    await engine.flush()

    assert [(BATCH_PATH, 101)] == [(each.path, len(each.events)) for each in engine.transport.requests]


async def test_single_events_return_after_the_dwell_time(virtual_clock: CheckedLoop) -> None:
    """If permits were scarce, events linger for 2 s; after that an event leaves at once again."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    await engine.track_all(range(101))
    await asyncio.sleep(1.8)
    await engine.track(101)
    await engine.track(102)
    await asyncio.sleep(0.3)
    await engine.track(103)
    await engine.flush()

    assert [(near(0.1), BATCH_PATH), (near(1.9), BATCH_PATH), (near(2.1), "view")] == [
        (each.at, each.path) for each in engine.transport.requests
    ]


async def test_a_request_with_one_event_is_never_a_batch(virtual_clock: CheckedLoop) -> None:
    """If batches are sent but only one event is due, the event goes to its own endpoint, not in a batch of one."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    await engine.track_all(range(101))
    await asyncio.sleep(1.0)
    await engine.track(101)
    await engine.flush()

    assert [(near(0.1), BATCH_PATH), (near(1.0), "view")] == [
        (each.at, each.path) for each in engine.transport.requests
    ]


async def test_a_slow_permit_of_any_limiter_counts(virtual_clock: CheckedLoop) -> None:
    """If a limiter that the user wrote grants no permit for 0.5 s, the waiting events leave in a batch."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME, limiter=limiter)
    await engine.track_all(range(3))
    await asyncio.sleep(0.6)
    limiter.open_gate()
    await engine.flush()

    assert [(BATCH_PATH, [0, 1, 2])] == [(each.path, each.numbers) for each in engine.transport.requests]


async def test_scarce_slots_count(virtual_clock: CheckedLoop) -> None:
    """If the largest number of requests is in flight for more than 0.5 s, the waiting events leave in a batch."""
    transport = ScriptedTransport(Step(latency=2.0), then=OK)
    engine = Engine(transport, batching=Batching(realtime=True, max_in_flight=1))
    await engine.track_all(range(5))
    await engine.flush()

    assert [[0], [1, 2, 3, 4]] == [each.numbers for each in transport.requests]


async def test_few_runs_of_one_event_wait_while_no_permit_is_granted(virtual_clock: CheckedLoop) -> None:
    """If no permit is granted, about 100 events wait in a run each and all later events share runs, to save memory."""
    engine = Engine(ScriptedTransport(), batching=REALTIME, limiter=RecordingLimiter(gated=True))
    await engine.track_all(range(10_000))

    assert buffer_of(engine).batches <= 100 + 10_000 / 50
    await engine.aclose(0)


async def test_events_tracked_together_after_an_idle_time_leave_alone(virtual_clock: CheckedLoop) -> None:
    """If permits were scarce and the client was then idle for 60 s, the next events leave one by one."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    await engine.track_all(range(101))
    await engine.flush()
    await asyncio.sleep(60.0)
    await engine.track_all(range(101, 104))
    await engine.flush()

    assert [BATCH_PATH, "view", "view", "view"] == paths(engine.transport)


# --- failures ---


async def test_a_single_event_is_retried_at_its_place(virtual_clock: CheckedLoop) -> None:
    """If a single event fails with 503, the event is sent again alone, and the visitor's next event waits meanwhile."""
    engine = Engine(ScriptedTransport(503, 503, then=answers), batching=REALTIME)
    receipt = await engine.track(1, "ann")
    await engine.track(2, "ann")
    await engine.flush()
    outcome = receipt.outcome

    assert [("view", [1]), ("view", [1]), ("view", [1]), ("view", [2])] == [
        (each.path, each.numbers) for each in engine.transport.requests
    ]
    assert isinstance(outcome, Delivered)
    assert (3, 2) == (outcome.attempts, engine.stats().retries)


async def test_a_400_rejects_a_single_event_directly(virtual_clock: CheckedLoop) -> None:
    """If a single event is refused with 400, it is `Rejected` at once, and the visitor's next event is sent."""
    engine = Engine(ScriptedTransport(400, then=answers), batching=REALTIME)
    outcome = await (await engine.track(1, "ann"))
    await (await engine.track(2, "ann"))

    assert isinstance(outcome, Rejected)
    assert (400, True, [[1], [2]]) == (
        outcome.status,
        outcome.isolated,
        [each.numbers for each in engine.transport.requests],
    )


@pytest.mark.parametrize("refusal", [404, 405, 301])
async def test_an_event_without_an_endpoint_goes_in_a_batch(virtual_clock: CheckedLoop, refusal: int) -> None:
    """If an event's own endpoint does not exist, the event is sent in a batch of one, and sending is not halted."""
    transport = ScriptedTransport(then=lambda request: 200 if request.path == BATCH_PATH else refusal)
    engine = Engine(transport, batching=REALTIME)
    outcome = await (await engine.track(1))

    assert isinstance(outcome, Delivered)
    assert (["view", BATCH_PATH], 2, "sending") == (paths(engine.transport), outcome.attempts, engine.stats().state)


async def test_a_wrong_address_halts_sending(virtual_clock: CheckedLoop) -> None:
    """If all endpoints answer 404, sending is halted, and all events are delivered once the endpoints work."""
    engine = Engine(ScriptedTransport(then=404), batching=REALTIME)
    await engine.track_all(range(5))
    await asyncio.sleep(5.0)
    assert ("halted", 0) == (engine.stats().state, engine.stats().rejected)
    engine.transport.then = answers
    await engine.flush()

    assert (5, "sending") == (engine.stats().delivered, engine.stats().state)


@pytest.mark.parametrize("refusal", [401, 403, 407])
async def test_a_wrong_key_halts_single_events(virtual_clock: CheckedLoop, refusal: int) -> None:
    """If single events are refused for key, shop or proxy, these and all later events wait and are then delivered."""
    engine = Engine(ScriptedTransport(then=refusal), batching=REALTIME)
    await engine.track_all(range(5))
    await asyncio.sleep(3.0)
    await engine.track_all(range(5, 300))
    assert ("halted", 300) == (engine.stats().state, engine.stats().pending + engine.stats().in_flight)
    engine.transport.then = answers
    await engine.flush()

    assert sorted(engine.transport.recorded_numbers) == list(range(300))


async def test_events_of_an_outage_leave_in_batches(virtual_clock: CheckedLoop) -> None:
    """If the API was down, the events that waited for the end of the outage leave in batches, and not one by one."""
    engine = Engine(ScriptedTransport(then=503), batching=REALTIME, retry=RetryPolicy(outlast=True))
    for number in range(2000):
        await engine.track(number)
        await asyncio.sleep(0.01)
    engine.transport.then = answers
    before = len(engine.transport.requests)
    await engine.flush()

    assert (2000, True) == (engine.stats().delivered, len(engine.transport.requests) - before < 150)


async def test_a_single_event_of_at_most_once_is_not_repeated(virtual_clock: CheckedLoop) -> None:
    """If an event of `at_most_once` may have been recorded, it is given up, and the visitor's next event is sent."""
    retry = RetryPolicy(at_most_once=(Order,))
    engine = Engine(ScriptedTransport(TIMED_OUT, then=answers), batching=REALTIME, retry=retry)
    outcome = await (await engine.track(1, "ann", Order))
    await (await engine.track(2, "ann"))

    assert isinstance(outcome, Abandoned)
    assert ("at_most_once", True, 1) == (outcome.reason, outcome.maybe_recorded, outcome.attempts)
    assert ["order", "view"] == paths(engine.transport)


async def test_a_429_pauses_single_events(virtual_clock: CheckedLoop) -> None:
    """If the API answers 429, events wait until the pause is over, and then leave in a batch."""
    limiter = LocalLimiter(RateLimit(requests=50))
    engine = Engine(ScriptedTransport(status(429, retry_after=2.0), then=answers), batching=REALTIME, limiter=limiter)
    await engine.track(0)
    await asyncio.sleep(0.1)
    await engine.track_all(range(1, 40))
    await engine.flush()

    assert (40, 3) == (engine.stats().delivered, len(engine.transport.requests))


# --- flush and close ---


async def test_a_flush_sends_a_backlog_in_batches(virtual_clock: CheckedLoop) -> None:
    """If permits are scarce and many events wait, a flush sends them in batches and needs no permit for each event."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME, limiter=scarce(10))
    await engine.track_all(range(90))
    await engine.flush()

    assert (90, True) == (engine.stats().delivered, now() <= 0.5 + 0.1 + 1.5)


async def test_a_close_sends_a_backlog_in_batches(virtual_clock: CheckedLoop) -> None:
    """If permits are scarce and many events wait, a close delivers all of them within its time-out."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME, limiter=scarce(2))
    await engine.track_all(range(3000))
    report = await engine.aclose(6.0)

    assert (True, 3000) == (report.clean, report.stats.delivered)


async def test_a_close_without_time_settles_single_events(virtual_clock: CheckedLoop) -> None:
    """If a client closes with a time-out of 0, single events in flight are given up, and waiting events are dropped."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    for number in range(3):
        await engine.track(number, "ann")
    await asyncio.sleep(0.05)
    report = await engine.aclose(0)

    assert (1, 2) == (report.stats.abandoned, report.stats.dropped)


async def test_a_direct_send_waits_for_single_events(virtual_clock: CheckedLoop) -> None:
    """If single events of a visitor wait, a request of `send` with this visitor is made after these events."""
    engine = Engine(ScriptedTransport(then=answers), batching=REALTIME)
    for number in (1, 2):
        await engine.track(number, "visitor3")
    await engine.send(3)

    assert [[1], [2], [3]] == [each.numbers for each in engine.transport.requests]


# --- what observers and counters show ---


async def test_an_observer_sees_the_endpoint(virtual_clock: CheckedLoop) -> None:
    """If a single event is sent, the observer gets a request with the event's path and one event, not a direct send."""

    class Requests(Observer):
        def __init__(self) -> None:
            self.begun: list[ObservedRequest] = []

        def request_began(self, request: ObservedRequest) -> None:
            self.begun.append(request)

    observer = Requests()
    async with make_client(ScriptedTransport(), batching=REALTIME, observer=observer) as client:
        await (await client.track(event(1)))
        stats = client.stats()

    assert [("view", 1, 1, False)] == [(each.path, each.events, each.attempt, each.direct) for each in observer.begun]
    assert (1, 1) == (stats.requests, stats.delivered)
