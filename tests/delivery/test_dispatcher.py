"""The dispatcher: batches leave when they are due, a flush waits for its events, and tasks end with the loop.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._errors import (
    FlushTimeoutError,
    NoAnswerError,
)
from retailrocket_async._events.models import CustomEvent
from retailrocket_async._outcome import Delivered
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.engine_state import limiter_of
from tests.support.fakes import (
    CODEC,
    NEVER,
    OK,
    PARKED,
    SLOW_RETRY,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    event,
    make_client,
    near,
    now,
    status,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from retailrocket_async._receipt import Receipt

# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1)
"""Settings by which each event is sent in a request of its own."""


# --- batches ---


async def test_idle_event_leaves_after_the_linger(virtual_clock: CheckedLoop) -> None:
    """If an event is alone, its request leaves exactly when the linger is over, and so does the next event's."""
    engine = Engine(ScriptedTransport())
    for number in range(3):
        await asyncio.sleep(10.0)
        await (await engine.track(number))

    assert engine.transport.times == [near(10.1), near(20.25), near(30.4)]


async def test_later_events_do_not_prolong_the_linger(virtual_clock: CheckedLoop) -> None:
    """If events are tracked while the oldest one lingers, all leave together when the oldest one's linger is over."""
    engine = Engine(ScriptedTransport())
    for number in range(4):
        await engine.track(number)
        await asyncio.sleep(0.04)
    await engine.aclose()

    assert [(request.at, request.numbers) for request in engine.transport.requests] == [
        (near(0.1), [0, 1, 2]),
        (near(0.16), [3]),
    ]


async def test_full_batch_leaves_at_once(virtual_clock: CheckedLoop) -> None:
    """If a batch is full, it leaves without linger."""
    engine = Engine(ScriptedTransport(), batching=Batching(max_events=3))
    await engine.track_all(range(7))
    await engine.flush()

    assert [(request.at, request.numbers) for request in engine.transport.requests] == [
        (near(0.0), [0, 1, 2]),
        (near(0.0), [3, 4, 5]),
        (near(0.0), [6]),
    ]


async def test_batch_is_taken_after_its_permit(virtual_clock: CheckedLoop) -> None:
    """If events are tracked while a permit is awaited, they go in the batch that gets the permit."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter)
    for number in range(10):
        await engine.track(number)
        await asyncio.sleep(1.0)
    limiter.open_gate()
    await engine.flush()

    assert ([request.numbers for request in engine.transport.requests], limiter.asked) == ([list(range(10))], 1)


async def test_scarce_permits_make_large_batches(virtual_clock: CheckedLoop) -> None:
    """If permits are scarce, batches grow: 2 requests a second carry 100 events a second."""
    limiter = LocalLimiter(RateLimit(requests=2, jitter=0.0))
    engine = Engine(ScriptedTransport(), limiter=limiter)
    for number in range(1000):
        await engine.track(number)
        await asyncio.sleep(0.01)
    await engine.aclose()
    assert engine.transport.recorded_numbers == list(range(1000))
    sizes = [len(request.events) for request in engine.transport.requests]

    assert len(sizes) <= 22
    assert max(sizes) <= 60


async def test_max_in_flight_is_used_and_never_exceeded(virtual_clock: CheckedLoop) -> None:
    """If the server is slow, exactly `max_in_flight` requests are in flight."""
    transport = ScriptedTransport(then=Step(latency=1.0))
    engine = Engine(transport, batching=Batching(max_events=1, max_in_flight=3))
    await engine.track_all(range(20))
    sends = [asyncio.create_task(engine.send(number)) for number in range(20, 25)]
    await engine.flush()

    assert sorted(transport.recorded_numbers) == list(range(25))
    assert all(task.done() for task in sends)

    assert (transport.worst_in_flight, now()) == (3, near(9.0))


async def test_send_passes_batches_that_wait_for_their_retry(virtual_clock: CheckedLoop) -> None:
    """If all batches wait for their retries, a direct send gets a free wire slot at once."""
    transport = ScriptedTransport(503, 503, then=OK)
    engine = Engine(transport, batching=Batching(max_events=1, max_in_flight=2), retry=SLOW_RETRY)
    await engine.track_all(range(5))
    await asyncio.sleep(0.051)
    begin = now()
    await engine.send(9)

    assert now() - begin == near(0.05)


async def test_custom_events_keep_their_visitors_order(virtual_clock: CheckedLoop) -> None:
    """If an event has a type unknown to this package, it is ordered by its visitor like any other event."""
    engine = Engine(ScriptedTransport(status(503), then=OK), batching=Batching(max_events=1))
    await engine.track(1, "ann")
    for number in (2, 3):
        fields = {"sessionExternalId": "ann", "productId": number}
        custom = CustomEvent(name="wish", fields=fields)
        await engine.dispatcher.intake.accept(custom, CODEC.encode(custom))
    await engine.dispatcher.intake.accept(
        odd := CustomEvent(name="odd", fields={"sessionExternalId": "", "productId": 4}), CODEC.encode(odd)
    )
    await engine.flush()

    assert [request.numbers for request in engine.transport.requests if request.events[0][0] == "ann"] == [
        [1],
        [1],
        [2],
        [3],
    ]


# --- flush ---


async def test_flush_does_not_linger(virtual_clock: CheckedLoop) -> None:
    """If a client is flushed, waiting events go without linger, and the flush returns when they have outcomes."""
    engine = Engine(ScriptedTransport(), batching=Batching(linger=60.0))
    receipt = await engine.track(1)
    await engine.flush()

    assert (now(), receipt.done()) == (near(0.05), True)


async def test_flush_waits_for_everything_before_it(virtual_clock: CheckedLoop) -> None:
    """If a flush returns, events in the buffer, in flight, between attempts and in direct sends have their outcomes."""
    transport = ScriptedTransport(503, PARKED, PARKED, then=PARKED)
    engine = Engine(transport, batching=Batching(max_events=1, max_in_flight=3))
    receipts = await engine.track_all(range(6))
    send = asyncio.create_task(engine.send(6))
    await asyncio.sleep(0.07)
    flush = asyncio.create_task(engine.flush())
    while not flush.done():
        open_events = sum(not receipt.done() for receipt in receipts) + (not send.done())
        assert open_events > 0
        transport.release()
        await asyncio.sleep(0.01)
    assert all(receipt.done() for receipt in receipts)
    await send


async def test_later_events_do_not_hold_a_flush(virtual_clock: CheckedLoop) -> None:
    """If events are tracked after a flush began, the flush does not wait for them, and they linger as usual."""
    transport = ScriptedTransport(OK, then=NEVER)
    engine = Engine(transport)
    await engine.track(1)
    flush = asyncio.create_task(engine.flush())
    await turns(2)
    later = await engine.track(2)
    send = asyncio.create_task(engine.send(3))
    await flush
    at = now()
    assert not later.done()
    await engine.aclose(1)
    with pytest.raises(NoAnswerError):
        await send

    assert at == near(0.05)


async def test_concurrent_flushes_wait_for_their_own(virtual_clock: CheckedLoop) -> None:
    """If several flushes run, each returns when the events tracked before it have their outcomes."""
    transport = ScriptedTransport(Step(latency=1.0), Step(latency=3.0), Step(latency=2.0))
    engine = Engine(transport, batching=Batching())

    async def flushed() -> float:
        await engine.flush()
        return now()

    flushes = []
    for number in range(3):
        await engine.track(number)
        flushes.append(asyncio.create_task(flushed()))
        await turns(2)

    assert await asyncio.gather(*flushes) == [near(1.0), near(3.0), near(3.0)]


async def test_flush_of_an_empty_client(virtual_clock: CheckedLoop) -> None:
    """If there are no events, a flush returns in the same turn."""
    engine = Engine(ScriptedTransport())
    await engine.flush()
    await engine.flush(0)
    await (await engine.track(1))
    before = now()
    await engine.flush(0)

    assert now() == before


async def test_flush_timeout(virtual_clock: CheckedLoop) -> None:
    """If a flush times out, its error has the number of open events, and they are still sent."""
    transport = ScriptedTransport(then=PARKED)
    engine = Engine(transport, batching=Batching(max_events=2))
    receipts = await engine.track_all(range(3))
    with pytest.raises(FlushTimeoutError, match="3 event") as caught:
        await engine.flush(2.0)
    assert now() == near(2.0)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    transport.release()
    await engine.flush(5.0)

    assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_flushes_while_events_stream_in(virtual_clock: CheckedLoop) -> None:
    """If flushes and events interleave, everything tracked before a flush is settled after it."""
    delays = itertools.cycle([0.01, 0.2, 0.03])
    engine = Engine(
        ScriptedTransport(then=lambda _: Step(latency=next(delays))),
        batching=Batching(max_events=3, max_in_flight=2),
    )
    receipts: list[Receipt] = []

    async def feed() -> None:
        for number in range(200):
            receipts.append(await engine.track(number, f"v{number % 7}"))
            await asyncio.sleep(0.004)

    async def flusher() -> None:
        for _ in range(20):
            before = len(receipts)
            await engine.flush()
            assert all(receipt.done() for receipt in receipts[:before])
            await asyncio.sleep(0.03)

    await asyncio.gather(feed(), flusher(), flusher())
    await engine.aclose()


# --- start and end ---


async def test_idle_client_has_no_task(virtual_clock: CheckedLoop) -> None:
    """If no event is open, before the first or after the last one, the client has no task."""
    engine = Engine(ScriptedTransport(503))
    assert not engine.dispatcher.started
    assert tasks() == set()
    for number in range(3):
        await (await engine.track(number))
        await turns(2)
        assert tasks() == set()
    await engine.send(9)
    await turns(2)

    assert tasks() == set()


async def _lingering() -> Engine:
    engine = Engine(ScriptedTransport())
    await engine.track(1)
    return engine


async def _starting() -> Engine:
    engine = Engine(ScriptedTransport(), batching=Batching(linger=0.0))
    await engine.track(1)
    while not engine.stats().in_flight:  # noqa: ASYNC110 - to stop in this very turn
        await asyncio.sleep(0)
    return engine


async def _waiting_for_a_permit() -> Engine:
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True))
    await engine.track(1)
    await asyncio.sleep(1.0)
    return engine


async def _waiting_for_an_answer() -> Engine:
    engine = Engine(ScriptedTransport(then=NEVER))
    await engine.track(1)
    await asyncio.sleep(1.0)
    return engine


async def _waiting_for_a_retry() -> Engine:
    engine = Engine(ScriptedTransport(503), retry=SLOW_RETRY)
    await engine.track(1)
    await asyncio.sleep(1.0)
    return engine


async def _waiting_for_room() -> Engine:
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True), buffer=Buffer(max_events=1))
    await engine.track(1)
    engine.caller = asyncio.create_task(engine.track(2))  # type: ignore[attr-defined]
    await asyncio.sleep(1.0)
    return engine


async def _closing() -> Engine:
    engine = await _waiting_for_an_answer()
    engine.caller = asyncio.create_task(engine.aclose(None))  # type: ignore[attr-defined]
    await asyncio.sleep(1.0)
    return engine


async def _closed_slowly() -> Engine:
    async def forever() -> None:
        await asyncio.sleep(1e9)

    engine = Engine(ScriptedTransport(close=forever))
    await engine.aclose()
    return engine


STATES = [
    _lingering,
    _starting,
    _waiting_for_a_permit,
    _waiting_for_an_answer,
    _waiting_for_a_retry,
    _waiting_for_room,
    _closing,
    _closed_slowly,
]


@pytest.mark.parametrize("state", STATES)
def test_loop_that_ends_with_the_client_open(
    caplog: pytest.LogCaptureFixture, state: Callable[[], Coroutine[Any, Any, Engine]]
) -> None:
    """If a loop ends while a client is open, in any state, no task is pending, and asyncio logs nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = run(state())
        stats = engine.stats()
        del engine
        gc.collect()

    assert stats.tracked == stats.abandoned + stats.dropped + stats.pending
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("state", STATES[:5])
async def test_all_tasks_cancelled(
    virtual_clock: CheckedLoop, state: Callable[[], Coroutine[Any, Any, Engine]]
) -> None:
    """If a shutdown cancels every task, a close still gives every event its outcome and does not hang."""
    engine = await state()
    for task in tasks():
        task.cancel()
    await turns(5)
    assert engine.stats().in_flight == 0
    limiter = limiter_of(engine)
    if isinstance(limiter, RecordingLimiter):
        limiter.open_gate()
    report = await engine.aclose(None)
    assert report.stats.tracked == 1 == report.stats.delivered + report.stats.abandoned
    if state in (_lingering, _waiting_for_a_permit):
        assert report.clean


async def test_cancelled_pump_is_replaced(virtual_clock: CheckedLoop) -> None:
    """If the pump is cancelled, before its first step or later, the next event starts a new pump."""
    engine = Engine(ScriptedTransport())
    receipts = [await engine.track(1)]
    (pump,) = tasks()
    pump.cancel()
    await turns()
    receipts.append(await engine.track(2))
    await turns()
    (pump,) = tasks()
    pump.cancel()
    await turns()
    receipts.append(await engine.track(3))
    await asyncio.sleep(1.0)

    assert [type(receipt.outcome) for receipt in receipts] == [Delivered] * 3


async def test_unclosed_client_warns(virtual_clock: CheckedLoop) -> None:
    """If a used client is garbage-collected open, it warns and starts no task; its events are still sent."""
    transport = ScriptedTransport()
    client = make_client(transport)
    receipt = await client.track(event(1))
    before = tasks()
    with pytest.warns(ResourceWarning, match=r"unclosed <AsyncTrackingClient partner_id='partner' .* open>"):
        del client
    assert tasks() == before
    assert transport.closed == 0
    await receipt


async def test_unused_client_does_not_warn(virtual_clock: CheckedLoop) -> None:
    """If a client was never used, was closed, or its constructor raised, its collection causes no warning."""
    unused = make_client(ScriptedTransport())
    assert repr(unused).endswith(" new>")
    with pytest.raises(ValueError, match="on_outcome"):
        make_client(ScriptedTransport(), on_outcome=1)
    async with make_client(ScriptedTransport()) as closed:
        await closed.track(event(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del unused, closed
        gc.collect()


def test_receipt_nobody_awaits_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """If receipts of delivered and of lost events are never awaited, nothing is logged and no warning is raised."""
    caplog.set_level(logging.DEBUG, logger="asyncio")

    async def test() -> None:
        engine = Engine(ScriptedTransport(200, 400), batching=ONE_EACH)
        await engine.track(1)
        await engine.track(2)
        await engine.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(test())
        gc.collect()

    assert [
        record.message for record in caplog.records if record.name == "asyncio" and record.levelno > logging.DEBUG
    ] == []
