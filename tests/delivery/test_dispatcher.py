"""The engine, on a virtual clock: every event goes out in time, gets one outcome, and the books add up in every turn.

`Engine` and `CheckedLoop` (see `fakes`) check after each turn of the loop, and at each request, that the counters add
up and that no bound is exceeded: no test here has to say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import warnings
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    AccessDeniedError,
    AuthenticationError,
    BadRequestError,
    BufferFullError,
    ClientClosedError,
    DeliveryError,
    DroppedError,
    FlushTimeoutError,
    NoAnswerError,
    NotFoundError,
    RejectedError,
    ServerError,
    ThrottledError,
)
from retailrocket_async._events.models import CustomEvent, Search
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Rejected
from retailrocket_async._queue.options import Batching, Buffer
from tests.contracts.limiter import worst_window
from tests.support.effort import most
from tests.support.fakes import (
    CODEC,
    NO_CONNECTION,
    OK,
    PARKED,
    ROUNDING,
    SLOW_RETRY,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    Request,
    ScriptedTransport,
    Step,
    event,
    into,
    make_client,
    now,
    status,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from retailrocket_async._outcome import Outcome
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent

NEVER = Step(latency=1e9)
"""A request that is never answered."""

# Without ordering, as all events are of one visitor.
ONE_EACH = Batching(max_events=1, ordered=False)
"""A request for each event."""


def near(seconds: float) -> Any:
    """Return what equals `seconds`, but for the turns of the loop."""
    return pytest.approx(seconds, abs=ROUNDING)


# --- batches ---


async def test_idle_event_leaves_after_the_linger(virtual_clock: CheckedLoop) -> None:
    """A lonely event leaves when it has lingered, neither sooner nor later, and so does the next one."""
    engine = Engine(ScriptedTransport())
    for number in range(3):
        await asyncio.sleep(10.0)
        await (await engine.track(number))

    assert engine.transport.times == [near(10.1), near(20.25), near(30.4)]


async def test_later_events_do_not_prolong_the_linger(virtual_clock: CheckedLoop) -> None:
    """Events that come while the oldest one lingers go with it, when it goes."""
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
    """A batch that is full does not linger."""
    engine = Engine(ScriptedTransport(), batching=Batching(ordered=False, max_events=3))
    await engine.track_all(range(7))
    await engine.flush()

    assert [(request.at, request.numbers) for request in engine.transport.requests] == [
        (near(0.0), [0, 1, 2]),
        (near(0.0), [3, 4, 5]),
        (near(0.0), [6]),
    ]


async def test_batch_is_taken_after_its_permit(virtual_clock: CheckedLoop) -> None:
    """What is tracked while the permit is waited for goes with the batch that it is for."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter)
    for number in range(10):
        await engine.track(number)
        await asyncio.sleep(1.0)
    limiter.open_gate()
    await engine.flush()

    assert ([request.numbers for request in engine.transport.requests], limiter.asked) == ([list(range(10))], 1)


async def test_scarce_permits_make_large_batches(virtual_clock: CheckedLoop) -> None:
    """The scarcer the permits, the larger the batches: 2 requests a second carry 100 events a second."""
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
    """With a slow server as many requests are on their way as are allowed, and not one more."""
    transport = ScriptedTransport(then=Step(latency=1.0))
    engine = Engine(transport, batching=Batching(ordered=False, max_events=1, max_in_flight=3))
    await engine.track_all(range(20))
    sends = [asyncio.create_task(engine.send(number)) for number in range(20, 25)]
    await engine.flush()

    assert sorted(transport.recorded_numbers) == list(range(25))
    assert all(task.done() for task in sends)

    assert (transport.worst_in_flight, now()) == (3, near(9.0))


async def test_send_passes_batches_that_wait_for_their_retry(virtual_clock: CheckedLoop) -> None:
    """While all batches wait for their retries, a direct send finds a free place on the wire."""
    transport = ScriptedTransport(503, 503, then=OK)
    engine = Engine(transport, batching=Batching(ordered=False, max_events=1, max_in_flight=2), retry=SLOW_RETRY)
    await engine.track_all(range(5))
    await asyncio.sleep(0.051)
    begin = now()
    await engine.send(9)

    assert now() - begin == near(0.05)


async def test_custom_events_keep_their_visitors_order(virtual_clock: CheckedLoop) -> None:
    """An event of a type unknown to this package is ordered by its visitor like any other."""
    engine = Engine(ScriptedTransport(status(503), then=OK), batching=Batching(max_events=1, by_session=True))
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


# --- attempts ---


async def test_one_permit_for_each_attempt(virtual_clock: CheckedLoop) -> None:
    """The limiter is asked once for every attempt, of batches, retries and direct sends, and told of each one's end."""
    transport = ScriptedTransport(503, NO_CONNECTION, 200, 429, TIMED_OUT, 200)
    limiter = RecordingLimiter()
    engine = Engine(transport, limiter=limiter)
    await (await engine.track(1))
    await engine.send(2)
    await engine.aclose()

    assert limiter.asked == len(transport.requests) == engine.stats().requests == 6
    assert [permit.answered for permit in limiter.permits] == [True, False, True, True, False, True]
    assert [permit.sent_at for permit in limiter.permits] == transport.times
    assert engine.stats().retries == 4
    assert engine.stats().requests_by_status == {503: 1, "connect": 1, 200: 2, 429: 1, "timeout": 1}


async def test_waits_are_within_the_policy(virtual_clock: CheckedLoop) -> None:
    """Each wait is at most the backoff doubled so often, and never above the longest."""
    policy = RetryPolicy(max_attempts=8, initial_backoff=1.0, max_backoff=5.0)

    engine = Engine(ScriptedTransport(then=503), retry=policy)
    await (await engine.track(1))
    waits = [later - at - 0.05 for at, later in itertools.pairwise(engine.transport.times)]

    assert len(waits) == 7
    assert all(-ROUNDING <= wait <= limit + ROUNDING for wait, limit in zip(waits, [1, 2, 4, 5, 5, 5, 5], strict=True))


async def test_retry_after_pauses_everybody(virtual_clock: CheckedLoop) -> None:
    """One answer with `Retry-After` holds back its own batch, others, and direct sends."""
    transport = ScriptedTransport(status(429, retry_after=7.0))
    engine = Engine(transport, retry=RetryPolicy(initial_backoff=0.0, max_backoff=0.0), batching=ONE_EACH)
    await engine.track(1)
    await asyncio.sleep(1.0)
    await engine.track(2)
    send = asyncio.create_task(engine.send(3))
    await engine.flush()
    await send

    assert transport.times == [near(0.0), near(7.05), near(7.05), near(7.05)]


@pytest.mark.parametrize("asked", [86_400.0, float("inf")])
async def test_retry_after_is_capped(virtual_clock: CheckedLoop, asked: float) -> None:
    """A server that asks for a day is asked again after a minute: the batch is not given up for it."""
    engine = Engine(ScriptedTransport(status(503, retry_after=asked)))
    outcome = await (await engine.track(1))
    times = engine.transport.times

    assert isinstance(outcome, Delivered)
    assert times == [near(0.1), near(60.15)]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (status(503), {"maybe_recorded": True, "status": 503}),
        (status(429), {"maybe_recorded": False, "status": 429}),
        (NO_CONNECTION, {"maybe_recorded": False, "failure": "connect: ConnectError"}),
        (TIMED_OUT, {"maybe_recorded": True, "failure": "timeout: ReadTimeout"}),
    ],
)
async def test_attempts_run_out(virtual_clock: CheckedLoop, step: Step, told: dict[str, Any]) -> None:
    """After `max_attempts` requests the event is abandoned, with what is known of it."""
    engine = Engine(ScriptedTransport(then=step), retry=RetryPolicy(max_attempts=4))
    outcome, requests = await (await engine.track(1)), len(engine.transport.requests)

    assert outcome == Abandoned(reason="retries_exhausted", attempts=4, elapsed=outcome.elapsed, **told)
    assert requests == 4


async def test_time_runs_out(virtual_clock: CheckedLoop) -> None:
    """No attempt starts after `max_elapsed` seconds, and the end comes no later than the last attempt's."""
    policy = RetryPolicy(max_attempts=10**6, max_elapsed=20.0, initial_backoff=2.0, max_backoff=2.0)
    engine = Engine(ScriptedTransport(then=status(503, latency=1.0)), retry=policy)
    outcome = await (await engine.track(1))
    last = max(engine.transport.times)

    assert isinstance(outcome, Abandoned)
    assert outcome.reason == "retries_exhausted"
    assert outcome.elapsed <= 21.0
    assert last <= 20.1 + ROUNDING


async def test_failed_batch_holds_back_no_other(virtual_clock: CheckedLoop) -> None:
    """While one batch waits for its retry, the others go."""
    transport = ScriptedTransport(503, then=OK)
    engine = Engine(transport, batching=ONE_EACH, retry=SLOW_RETRY)
    receipts = await engine.track_all(range(20))
    await asyncio.sleep(0.3)
    first, *others = [receipt.outcome for receipt in receipts]

    assert first is None
    assert all(isinstance(outcome, Delivered) for outcome in others)


# --- outcomes ---


@pytest.mark.parametrize("code", [200, 201, 204, 299])
def test_accepted(code: int) -> None:
    """Every 2xx means delivered."""
    assert outcome_of(code) == Delivered(status=code, attempts=1, elapsed=near(0.05))


@pytest.mark.parametrize("code", [301, 307, 400, 401, 403, 404, 405, 413, 418])
def test_refused(code: int) -> None:
    """What is refused is rejected, after one request."""
    assert outcome_of(code) == Rejected(status=code, attempts=1, elapsed=near(0.05))


@pytest.mark.parametrize("code", [101, 501, 505, 599])
def test_unclear(code: int) -> None:
    """An answer that means nothing known ends it, and leaves open whether the event was recorded."""
    expected = Abandoned(reason="not_retryable", maybe_recorded=True, status=code, attempts=1, elapsed=near(0.05))

    assert outcome_of(code) == expected


@pytest.mark.parametrize("code", [408, 425, 429])
def test_refused_for_now(code: int) -> None:
    """What is refused for the moment is tried again, and was not recorded meanwhile."""
    outcome = outcome_of(code, 200)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=False)


@pytest.mark.parametrize("step", [500, 502, 503, 504, TIMED_OUT])
def test_ambiguous_failure_may_duplicate(step: Step | int) -> None:
    """What is delivered after an answer that left it open may be recorded twice, and says so."""
    outcome = outcome_of(step, 200)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=True)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_refusal_after_an_ambiguous_failure(code: int) -> None:
    """A refusal speaks for its own attempt only: an earlier one may have been recorded."""
    outcome = outcome_of(TIMED_OUT, 429, code)

    assert isinstance(outcome, Abandoned)
    assert (outcome.reason, outcome.maybe_recorded, outcome.status) == ("not_retryable", True, code)


def test_malformed_after_an_ambiguous_failure() -> None:
    """A malformed request was malformed in every attempt, so none was recorded."""
    assert outcome_of(TIMED_OUT, 400) == Rejected(status=400, attempts=2, elapsed=pytest.approx(0.1, abs=0.6))


def outcome_of(*script: Step | int) -> Outcome:
    """Return the outcome of an event whose requests end so."""

    async def test() -> Outcome:
        engine = Engine(ScriptedTransport(*script, then=NEVER), retry=RetryPolicy(max_halt=0.0))
        return await (await engine.track(1))

    return run(test())


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([400], BadRequestError),
        ([401], AuthenticationError),
        ([403], AccessDeniedError),
        ([404], NotFoundError),
        ([302], RejectedError),
        ([429, 429], ThrottledError),
        ([503, 503], ServerError),
        ([501], ServerError),
        ([TIMED_OUT, NO_CONNECTION], NoAnswerError),
    ],
)
async def test_direct_send_raises_the_typed_error(
    virtual_clock: CheckedLoop, script: list[Step | int], error: type[DeliveryError]
) -> None:
    """A direct send that fails raises the error named by what happened, with its facts and without a chain."""
    engine = Engine(ScriptedTransport(*script, then=NEVER), retry=RetryPolicy(max_attempts=2))
    with pytest.raises(error) as caught:
        await engine.send(1)

    assert type(caught.value) is error
    assert caught.value.attempts == len(script)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_direct_sends_go_to_their_endpoints(virtual_clock: CheckedLoop) -> None:
    """`send` posts the event alone to its own endpoint, `send_batch` a list to `visitorEvents`, both at once."""
    engine = Engine(ScriptedTransport())

    assert await engine.send(1) == Delivered(status=200, elapsed=near(0.05))
    assert await engine.send_batch([2, 3]) == Delivered(status=200, elapsed=near(0.05))
    assert engine.stats().delivered == engine.stats().tracked == 3

    assert [(request.at, request.path, request.numbers) for request in engine.transport.requests] == [
        (near(0.0), "view", [1]),
        (near(0.05), "visitorEvents", [2, 3]),
    ]


@pytest.mark.parametrize(("recorded", "latency"), [(True, 0.0), (False, 1.0)])
async def test_transport_that_raises(
    virtual_clock: CheckedLoop,
    caplog: pytest.LogCaptureFixture,
    recorded: bool,  # noqa: FBT001
    latency: float,
) -> None:
    """A transport with a defect costs its own batch only, which may have been recorded; the pump lives on."""
    broken = Step(reply=ZeroDivisionError("with?apiKey=secret"), recorded=recorded, latency=latency)
    engine = Engine(ScriptedTransport(broken, OK, broken), limiter=(limiter := RecordingLimiter()))
    outcomes = [await (await engine.track(number)) for number in (1, 2)]
    with pytest.raises(NoAnswerError) as caught:
        await engine.send(3)
    assert limiter.open == 0
    first, second, third = [*outcomes, caught.value.outcome]
    expected = {"reason": "internal_error", "maybe_recorded": True, "status": None}

    assert {name: getattr(first, name) for name in expected} == expected
    assert isinstance(second, Delivered)
    assert {name: getattr(third, name) for name in expected} == expected
    assert [record.message for record in caplog.records if "ZeroDivisionError" in record.message] == [
        "a request ended in ZeroDivisionError (logged once; stats() counts on)"
    ]
    assert "secret" not in caplog.text


# --- backpressure ---


async def test_track_waits_only_where_the_buffer_is_full(virtual_clock: CheckedLoop) -> None:
    """`track` returns in the same turn while there is room, and waits while there is none."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=3), batching=Batching(max_events=2))
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CheckedLoop)
    before = loop.turns
    await engine.track_all(range(3))
    assert loop.turns == before
    waiting = asyncio.create_task(engine.track(3))
    await asyncio.sleep(100.0)
    assert not waiting.done()
    assert (engine.stats().waiting, engine.stats().pending, engine.stats().tracked) == (1, 3, 3)
    limiter.grant()
    await waiting
    assert (engine.stats().waiting, engine.stats().pending, engine.stats().tracked) == (0, 2, 4)
    limiter.open_gate()
    await engine.aclose()


async def test_bytes_are_bounded(virtual_clock: CheckedLoop) -> None:
    """The buffer is full when its bytes are, whatever the number of events."""
    size = len(CODEC.encode(event(10))) + 1

    limiter = RecordingLimiter(gated=True)
    engine = Engine(
        ScriptedTransport(), limiter=limiter, buffer=Buffer(max_bytes=2048), batching=Batching(max_bytes=1024)
    )
    for number in itertools.count():
        if not engine.dispatcher._buffer.fits(len(CODEC.encode(event(number))) + 1):
            break
        engine.track_nowait(number)
    with pytest.raises(BufferFullError, match=rf"full: {number} events, \d+ bytes, 0 callers waiting"):
        engine.track_nowait(number)
    await engine.aclose(0)

    assert engine.stats().tracked == pytest.approx(2048 // size, abs=1)


async def test_waiters_are_served_in_order_one_by_one(virtual_clock: CheckedLoop) -> None:
    """Each place that becomes free goes to the caller that has waited longest."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=1), batching=ONE_EACH)
    served: list[int] = []

    async def caller(number: int) -> None:
        await engine.track(number)
        served.append(number)

    callers = [asyncio.create_task(caller(number)) for number in range(10)]
    for expected in range(1, 10):
        await asyncio.sleep(1.0)
        assert served == list(range(expected))
        limiter.grant()
    await asyncio.gather(*callers)
    limiter.open_gate()
    await engine.aclose()

    assert engine.transport.sent_numbers == list(range(10))

    assert served == list(range(10))


async def test_cancelled_waiter_is_never_sent(virtual_clock: CheckedLoop) -> None:
    """A caller that is cancelled while it waits leaves no event, and those behind it move up."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=1), batching=ONE_EACH)
    await engine.track(0)
    callers = [asyncio.create_task(engine.track(number)) for number in range(1, 6)]
    await turns()
    for cancelled in (callers[0], callers[2]):
        cancelled.cancel()
    await turns()
    assert engine.stats().waiting == 3
    limiter.open_gate()
    await asyncio.wait(callers)
    await engine.aclose()

    assert engine.transport.sent_numbers == [0, 2, 4, 5]
    assert engine.stats().tracked == 4


async def test_cancelled_waiter_makes_room_for_smaller_ones(virtual_clock: CheckedLoop) -> None:
    """Where a large event's caller is cancelled, smaller ones behind it that fit are accepted at once."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(
        ScriptedTransport(), limiter=limiter, buffer=Buffer(max_bytes=1024), batching=Batching(max_bytes=1024)
    )
    accept = engine.dispatcher.intake.accept
    await accept(event(1), CODEC.encode(event(1)))
    large = asyncio.create_task(accept(event(2), b" " * 1000 + CODEC.encode(event(2))))
    small = asyncio.create_task(accept(event(3), CODEC.encode(event(3))))
    await turns()
    with pytest.raises(BufferFullError):
        engine.track_nowait(4)
    assert engine.stats().waiting == 2
    large.cancel()
    await asyncio.wait({large, small}, timeout=1.0)
    assert small.done()
    engine.track_nowait(5)
    limiter.open_gate()
    await engine.aclose()

    assert engine.transport.sent_numbers == [1, 3, 5]


async def test_cancelled_after_acceptance_is_delivered(virtual_clock: CheckedLoop) -> None:
    """A caller that is cancelled in the very turn in which its event was accepted does not take it back."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=1), batching=ONE_EACH)
    await engine.track(0)
    caller = asyncio.create_task(engine.track(1))
    await turns()
    limiter.grant()
    while engine.stats().waiting:
        assert not caller.done()
        await asyncio.sleep(0)
    caller.cancel()
    limiter.open_gate()
    await engine.aclose()

    assert caller.cancelled()
    assert engine.transport.sent_numbers == [0, 1]


async def test_track_nowait_never_overtakes(virtual_clock: CheckedLoop) -> None:
    """`track_nowait` is refused where others wait, even if its own event would fit."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=2), batching=ONE_EACH)
    engine.track_nowait(0)
    engine.track_nowait(1)
    with pytest.raises(BufferFullError, match="0 callers waiting"):
        engine.track_nowait(8)
    callers = [asyncio.create_task(engine.track(number)) for number in (2, 3)]
    await turns()
    with pytest.raises(BufferFullError, match="2 callers waiting"):
        engine.track_nowait(9)
    limiter.open_gate()
    await asyncio.wait(callers)
    await engine.aclose()

    assert engine.transport.sent_numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("lazy", [False, True])
async def test_large_feed_lets_others_run(virtual_clock: CheckedLoop, lazy: bool) -> None:  # noqa: FBT001
    """A feed of 100,000 events, from an iterable or an async one, lets other tasks run every 250 events."""
    one = event(1)

    async def feed() -> AsyncIterator[Any]:
        for _ in range(100_000):
            yield one

    client = make_client(ScriptedTransport(), batching=Batching(max_in_flight=1))
    ran = 0
    longest = 0
    last = 0

    async def other() -> None:
        nonlocal ran, longest, last
        while True:
            ran += 1
            tracked = client.stats().tracked
            longest, last = max(longest, tracked - last), tracked
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    receipts = await client.track_many(feed() if lazy else itertools.repeat(one, 100_000))
    assert len(receipts) == 100_000
    running.cancel()
    await client.aclose(0)

    assert ran >= 400
    assert longest <= 250


@pytest.mark.parametrize(("size", "most"), [(1000, 125), (10_000, 25)])
@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
async def test_large_events_let_others_run_sooner(virtual_clock: CheckedLoop, size: int, most: int, full: bool) -> None:  # noqa: FBT001
    """A KiB counts as one event more, also of events that a full buffer drops."""
    buffer = Buffer(max_events=1, overflow="drop_newest") if full else Buffer()
    client = make_client(ScriptedTransport(then=NEVER), buffer=buffer)
    phrase = "x" * size
    longest = last = 0

    async def other() -> None:
        nonlocal longest, last
        while True:
            tracked = client.stats().tracked
            longest, last = max(longest, tracked - last), tracked
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    await client.track_many(Search(session_external_id="v", search_phrase=phrase) for _ in range(1000))
    running.cancel()
    await client.aclose(0)

    assert longest <= most


# --- flush ---


async def test_flush_does_not_linger(virtual_clock: CheckedLoop) -> None:
    """A flush sends at once what waits, and returns when it has its outcome."""
    engine = Engine(ScriptedTransport(), batching=Batching(linger=60.0))
    receipt = await engine.track(1)
    await engine.flush()

    assert (now(), receipt.done()) == (near(0.05), True)


async def test_flush_waits_for_everything_before_it(virtual_clock: CheckedLoop) -> None:
    """Events in the buffer, in flight, between attempts and sent directly all have their outcome after a flush."""
    transport = ScriptedTransport(503, PARKED, PARKED, then=PARKED)
    engine = Engine(transport, batching=Batching(ordered=False, max_events=1, max_in_flight=3))
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
    """A flush ends though events go on being tracked, which keep their own time."""
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
    """Each of several flushes ends with the events that were there before it."""
    transport = ScriptedTransport(Step(latency=1.0), Step(latency=3.0), Step(latency=2.0))
    engine = Engine(transport, batching=Batching(ordered=False))

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
    """A flush with nothing to wait for returns in the same turn."""
    engine = Engine(ScriptedTransport())
    await engine.flush()
    await engine.flush(0)
    await (await engine.track(1))
    before = now()
    await engine.flush(0)

    assert now() == before


async def test_flush_timeout(virtual_clock: CheckedLoop) -> None:
    """A flush that runs out of its time says how many events are open, and they go on being sent."""
    transport = ScriptedTransport(then=PARKED)
    engine = Engine(transport, batching=Batching(ordered=False, max_events=2))
    receipts = await engine.track_all(range(3))
    with pytest.raises(FlushTimeoutError, match="3 event") as caught:
        await engine.flush(2.0)
    assert now() == near(2.0)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    transport.release()
    await engine.flush(5.0)

    assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_flushes_while_events_stream_in(virtual_clock: CheckedLoop) -> None:
    """However flushes and events interleave, after a flush everything tracked before it is settled."""
    delays = itertools.cycle([0.01, 0.2, 0.03])
    engine = Engine(
        ScriptedTransport(then=lambda _: Step(latency=next(delays))),
        batching=Batching(max_events=3, max_in_flight=2, ordered=True),
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


# --- close ---


async def test_close_delivers_what_is_open(virtual_clock: CheckedLoop) -> None:
    """A close with time enough delivers everything, and its report says so."""
    engine = Engine(ScriptedTransport(503), batching=Batching(ordered=False, max_events=4, linger=100.0))
    await engine.track_all(range(10))
    report = await engine.aclose()

    assert report.clean
    assert report.stats.delivered == report.stats.tracked == 10
    assert report.elapsed == near(now())
    assert engine.transport.closed == 1
    assert tasks() == set()


async def test_close_of_an_unused_client(virtual_clock: CheckedLoop) -> None:
    """A client that was never used closes at once."""
    engine = Engine(ScriptedTransport())
    report = await engine.aclose()

    assert report.clean
    assert report.stats.tracked == 0
    assert now() == near(0.0)


Setup = tuple[ScriptedTransport, dict[str, Any]]

STUCK: dict[str, Callable[[], Setup]] = {
    "limiter": lambda: (ScriptedTransport(), {"limiter": RecordingLimiter(gated=True)}),
    "raising limiter": lambda: (ScriptedTransport(), {"limiter": RecordingLimiter(*[OSError()] * 1000)}),
    "backoff": lambda: (
        ScriptedTransport(then=NO_CONNECTION),
        {"retry": SLOW_RETRY},
    ),
    "pause": lambda: (ScriptedTransport(then=status(429, retry_after=50)), {}),
    "request": lambda: (ScriptedTransport(then=NEVER), {}),
    "stubborn request": lambda: (ScriptedTransport(then=Step(latency=1e9, stubborn=True)), {}),
    "stubborn request that failed": lambda: (
        ScriptedTransport(then=Step(latency=1e9, stubborn=True, reply=Reply(status=503))),
        {},
    ),
}


@pytest.mark.parametrize("where", STUCK)
@pytest.mark.parametrize("timeout", [0, 5.0])
async def test_close_is_a_deadline(virtual_clock: CheckedLoop, where: str, timeout: float) -> None:  # noqa: ASYNC109
    """Wherever events are stuck, a close returns in time, with a report that holds each of them with its outcome."""
    transport, options = STUCK[where]()
    told: list[UndeliveredEvent] = []
    options["batching"] = Batching(max_events=2, max_in_flight=2)
    engine = Engine(transport, buffer=Buffer(max_events=50), on_outcome=into(told), **options)
    receipts = await engine.track_all(range(9))
    sends = [asyncio.create_task(engine.send(number)) for number in (100, 101)]
    await asyncio.sleep(1.0)
    begin = now()
    report = await engine.aclose(timeout)
    # The hook, which is quick, has a part of the time for its own.
    assert 0.9 * timeout <= now() - begin <= timeout + ROUNDING
    assert report.elapsed <= timeout + ROUNDING
    await turns(5)
    stats = report.stats
    assert (stats.pending, stats.in_flight, stats.delivered) == (0, 0, 0)
    assert stats.tracked == 11 == stats.abandoned + stats.dropped
    assert list(report.undelivered) == told
    assert [kept.event.product_id for kept in report.undelivered] == list(range(9))  # type: ignore[attr-defined]
    for receipt, kept in zip(receipts, report.undelivered, strict=True):
        assert receipt.outcome is kept.outcome
    sent = {number for request in transport.requests for number in request.numbers}
    for number, receipt in enumerate(receipts):
        outcome = receipt.outcome
        if number in sent:
            assert isinstance(outcome, Abandoned)
            assert outcome.reason == "closed"
            assert outcome.maybe_recorded == ("request" in where)
        else:
            assert outcome == Dropped(reason="closed")
    for send, number in zip(sends, (100, 101), strict=True):
        with pytest.raises(NoAnswerError if number in sent and where != "pause" else (DroppedError, ThrottledError)):
            await send
    requests = len(transport.requests)
    await asyncio.sleep(1000.0)
    assert len(transport.requests) == requests
    assert transport.in_flight == 0
    limiter = options.get("limiter")

    assert limiter is None or limiter.open == 0
    assert tasks() == set()


async def test_close_knows_what_was_on_the_wire_before(virtual_clock: CheckedLoop) -> None:
    """An event that had an ambiguous answer and waits for its retry at the close may be recorded."""
    engine = Engine(ScriptedTransport(503), retry=SLOW_RETRY)
    receipt = await engine.track(1)
    await asyncio.sleep(1.0)
    await engine.aclose(0)
    outcome = await receipt

    assert outcome == Abandoned(reason="closed", maybe_recorded=True, status=503, attempts=1, elapsed=outcome.elapsed)


async def test_second_close_returns_the_same_report(virtual_clock: CheckedLoop) -> None:
    """A second close, later or at the same time, returns the very same report, and closes nothing again."""
    engine = Engine(ScriptedTransport(then=Step(latency=2.0)))
    await engine.track(1)
    first, second = await asyncio.gather(engine.aclose(), engine.aclose())
    third = await engine.aclose(0)

    assert first is second is third
    assert engine.transport.closed == 1


async def test_second_close_has_a_deadline_of_its_own(virtual_clock: CheckedLoop) -> None:
    """A close that has less time than one under way cuts it short: both return then, with the same report."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_events=2, max_in_flight=1))
    await engine.track_all(range(4))
    patient = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(10.0)
    report = await engine.aclose(3.0)

    assert now() == near(13.0)
    assert await patient is report
    assert now() == near(13.0)
    assert (report.stats.abandoned, report.stats.dropped) == (2, 2)
    assert tasks() == set()


async def test_second_close_with_more_time_changes_nothing(virtual_clock: CheckedLoop) -> None:
    """A close that has more time than one under way returns with it."""
    engine = Engine(ScriptedTransport(then=NEVER))
    await engine.track(1)
    first, second = await asyncio.gather(engine.aclose(2.0), engine.aclose(None))

    assert first is second
    assert now() == near(2.0)


async def test_waiting_callers_are_told_of_the_close(virtual_clock: CheckedLoop) -> None:
    """A close refuses those who wait for room, and all who come later; what was accepted is delivered."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=2), batching=ONE_EACH)
    await engine.track_all(range(2))
    callers = [asyncio.create_task(engine.track(number)) for number in range(2, 5)]
    await turns()
    callers[1].cancel()
    close = asyncio.create_task(engine.aclose())
    await turns(2)
    for use in (engine.track(9), engine.send(9), engine.send_batch([9])):
        with pytest.raises(ClientClosedError):
            await use
    with pytest.raises(ClientClosedError):
        engine.track_nowait(9)
    limiter.open_gate()
    report = await close
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ClientClosedError, asyncio.CancelledError, ClientClosedError]
    assert report.stats.delivered == report.stats.tracked == 2
    with pytest.raises(ClientClosedError):
        await engine.track(9)
    await engine.flush()


async def test_waiting_caller_cancelled_by_the_close_leaves_no_trace(
    virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller that is refused and cancelled in the same turn leaves nothing in the log."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=1))
    await engine.track(0)
    caller = asyncio.create_task(engine.track(1))
    await turns()
    close = asyncio.create_task(engine.aclose(1.0))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller, close})
    assert caller.cancelled()
    gc.collect()

    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_cancelled_close_settles_everything(virtual_clock: CheckedLoop) -> None:
    """A close that is cancelled leaves no event without an outcome and no task, and its report can be had."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_events=2, max_in_flight=1))
    receipts = await engine.track_all(range(4))
    close = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(5.0)
    close.cancel()
    with pytest.raises(asyncio.CancelledError):
        await close
    assert [type(receipt.outcome) for receipt in receipts] == [Abandoned, Abandoned, Dropped, Dropped]
    report = await engine.aclose()
    assert len(report.undelivered) == 4
    await turns(5)

    assert tasks() == set()
    assert engine.transport.closed == 1


async def test_impossible_timeout_closes_nothing(virtual_clock: CheckedLoop) -> None:
    """A close with a deadline that is no number is an error that loses nothing: the client stays open."""
    engine = Engine(ScriptedTransport())
    receipt = await engine.track(1)
    with pytest.raises(TypeError):
        await engine.aclose("5")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await engine.flush("5")  # type: ignore[arg-type]
    await engine.track(2)

    assert isinstance(await receipt, Delivered)
    assert (await engine.aclose()).clean


def test_connections_that_do_not_close_hold_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A transport that never closes holds a close for half a second, one that raises for none; both are told."""

    async def forever() -> None:
        await asyncio.sleep(1e9)

    async def broken() -> None:
        raise ZeroDivisionError

    async def test(close: Callable[[], Coroutine[Any, Any, None]]) -> float:
        engine = Engine(ScriptedTransport(close=close))
        await engine.aclose()
        return now()

    assert run(test(forever)) == near(0.5)
    assert run(test(broken)) == near(0.0)
    gc.collect()
    assert [(record.name, record.message.split(" (")[0]) for record in caplog.records] == [
        ("retailrocket_async", "closing the connections failed: ZeroDivisionError")
    ]


@pytest.mark.parametrize("ordered", [False, True])
async def test_report_is_oldest_first(virtual_clock: CheckedLoop, ordered: bool) -> None:  # noqa: FBT001
    """The events of a report come in the order in which they were tracked, batch by batch."""
    engine = Engine(
        ScriptedTransport(),
        limiter=RecordingLimiter(gated=True),
        batching=Batching(max_events=10, by_session=ordered),
    )
    for number in range(20):
        await engine.track(number, f"v{number % 3 if ordered else 0}")
        await asyncio.sleep(0.01)
    report = await engine.aclose(0)
    numbers = [kept.event.product_id for kept in report.undelivered]

    assert numbers[0] == 0
    assert sorted(numbers) == list(range(20))
    assert ordered or numbers == sorted(numbers)


async def test_async_with_closes(virtual_clock: CheckedLoop) -> None:
    """Leaving the block closes the client and delivers, also where an exception leaves it."""
    transport = ScriptedTransport()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with make_client(transport) as client:
            await client.view(session_external_id="a", product_id=1)
            raise ZeroDivisionError
    assert transport.recorded_numbers == [1]
    with pytest.raises(ClientClosedError):
        await client.track(event(2))

    assert repr(client).endswith(" closed>")


async def test_client_end_to_end(virtual_clock: CheckedLoop) -> None:
    """Every way into a real client, over its real transport, ends in the right outcome and the right counts."""
    transport = ScriptedTransport(NO_CONNECTION, TIMED_OUT, OK)
    async with make_client(transport) as client:
        receipt = await client.track(event(1))
        outcome = await receipt
        assert outcome == Delivered(status=200, attempts=3, elapsed=outcome.elapsed, maybe_duplicate=True)
        receipts = await client.track_many([event(2), event(3)])
        receipts.append(client.track_nowait(event(4)))
        await client.flush()
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
        await client.send(event(5))
        await client.send_batch([event(6), event(7)])
        assert [request.path for request in transport.requests[-2:]] == ["view", "visitorEvents"]
        assert client.stats().delivered == client.stats().tracked == 7
        assert client.stats().requests_by_status == {"connect": 1, "timeout": 1, 200: 4}


# --- hooks ---


async def test_hook_gets_every_undelivered_event_once(virtual_clock: CheckedLoop) -> None:
    """Rejected, abandoned and dropped events are given to the hook, once each, as batches; delivered ones are not."""
    # What comes while the hook runs, or in one go, is told of in one call.
    told: list[list[int]] = []
    kinds: list[type] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        told.append([kept.event.product_id for kept in events])  # type: ignore[attr-defined]
        kinds.extend(type(kept.outcome) for kept in events)
        engine.check()

    transport = ScriptedTransport(200, 400, 400, 400, 501, then=NEVER)
    engine = Engine(transport, batching=Batching(max_events=2, max_in_flight=1), on_outcome=hook)
    await engine.track_all(range(12))
    await asyncio.sleep(1.0)
    report = await engine.aclose(1.0)

    assert kinds == [Rejected] * 2 + [Abandoned] * 4 + [Dropped] * 4
    # The books add up whenever it is called.
    assert report.stats.hook_errors == 0

    assert (told, len(report.undelivered)) == ([[2], [3], [4, 5], [6, 7, 8, 9, 10, 11]], 6)


async def test_raising_hook_stops_nothing(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that always raises is counted and logged once; every event still has its outcome."""

    async def hook(_: Sequence[UndeliveredEvent]) -> None:
        raise ZeroDivisionError

    engine = Engine(ScriptedTransport(400, 400, OK, then=NEVER), batching=ONE_EACH, on_outcome=hook)
    receipts = []
    for number in range(4):
        receipts.append(await engine.track(number))
        await asyncio.sleep(1.0)
    report = await engine.aclose(1.0)

    assert [type(receipt.outcome) for receipt in receipts] == [Rejected, Rejected, Delivered, Abandoned]
    assert engine.stats().hook_errors == 3
    assert len(report.undelivered) == 1

    assert sum("on_outcome raised ZeroDivisionError" in record.message for record in caplog.records) == 1


async def test_hook_may_use_the_client(virtual_clock: CheckedLoop) -> None:
    """A hook may track again what was refused, and look at the counters."""

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        for kept in events:
            engine.track_nowait(kept.event.product_id + 100)  # type: ignore[attr-defined]

    transport = ScriptedTransport(then=lambda request: 400 if min(request.numbers) < 100 else 200)
    engine = Engine(transport, batching=Batching(linger=0.0), on_outcome=hook)
    await engine.track_all(range(3))
    await asyncio.sleep(1.0)

    assert sorted(transport.recorded_numbers) == [100, 101, 102]


# --- limiters that fail ---


async def test_raising_limiter_loses_no_batch(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """Events wait in the buffer while the limiter raises, and go when it works again; told once."""
    limiter = RecordingLimiter(*[OSError("redis://:secret@host")] * 5)
    engine = Engine(ScriptedTransport(503), limiter=limiter)
    outcome = await (await engine.track(1))
    assert isinstance(outcome, Delivered)
    assert limiter.open == 0
    times = engine.transport.times

    assert times[0] == near(5.1)
    assert [record.message.split(" (")[0] for record in caplog.records] == ["the limiter failed: OSError"]
    assert "secret" not in caplog.text


async def test_raising_limiter_loses_no_retry(virtual_clock: CheckedLoop) -> None:
    """A batch whose retry finds the limiter broken waits for it, and is delivered."""
    limiter = RecordingLimiter(None, *[OSError()] * 5)
    engine = Engine(ScriptedTransport(503), limiter=limiter)
    outcome = await (await engine.track(1))

    assert (limiter.asked, engine.stats().requests, engine.stats().retries) == (7, 2, 1)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=True)


async def test_raising_limiter_delays_a_direct_send(virtual_clock: CheckedLoop) -> None:
    """A direct send asks a broken limiter again, for as long as the policy allows."""
    limiter = RecordingLimiter(*[OSError()] * 3)
    engine = Engine(ScriptedTransport(), limiter=limiter)
    assert isinstance(await engine.send(1), Delivered)
    assert (engine.stats().requests, engine.stats().retries) == (1, 0)
    limiter = RecordingLimiter(*[OSError()] * 10_000)
    engine = Engine(ScriptedTransport(), limiter=limiter, retry=RetryPolicy(max_elapsed=60.0))
    with pytest.raises(NoAnswerError) as caught:
        await engine.send(2)

    assert (caught.value.attempts, caught.value.maybe_recorded) == (0, False)


@pytest.mark.parametrize("backoff", [0.0, 0.1])
async def test_raising_limiter_is_asked_as_often_as_the_policy_says(virtual_clock: CheckedLoop, backoff: float) -> None:
    """Without a wait between its tries a direct send asks a broken limiter `max_attempts` times, not without end."""
    limiter = RecordingLimiter(*[OSError()] * 10_000)
    policy = RetryPolicy(max_attempts=7, initial_backoff=backoff, max_backoff=backoff)
    engine = Engine(ScriptedTransport(), limiter=limiter, retry=policy)
    with pytest.raises(NoAnswerError) as caught:
        await engine.send(1)

    assert (caught.value.attempts, caught.value.maybe_recorded) == (0, False)
    assert limiter.asked == 7


async def test_limiter_that_is_cancelled_itself_loses_nothing(virtual_clock: CheckedLoop) -> None:
    """Where something is cancelled that the limiter waits for, it has failed: nobody stops, and nobody hangs."""
    limiter = RecordingLimiter(asyncio.CancelledError())
    engine = Engine(ScriptedTransport(503), limiter=limiter)
    receipt = await engine.track(1)
    await engine.flush(10.0)
    assert isinstance(receipt.outcome, Delivered)
    limiter = RecordingLimiter(asyncio.CancelledError(), None, asyncio.CancelledError())
    engine = Engine(ScriptedTransport(503), limiter=limiter)

    assert (await engine.send(1)).attempts == 2


async def test_broken_permits_and_pauses_lose_nothing(
    virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """A limiter whose permits and pauses raise is complained of once, and costs no event its outcome."""
    limiter = RecordingLimiter(broken_permits=True, broken_pause=OSError())
    engine = Engine(ScriptedTransport(status(429, retry_after=1.0), OK, then=NEVER), limiter=limiter)
    outcome = await (await engine.track(1))
    assert isinstance(outcome, Delivered)
    send = asyncio.create_task(engine.send(2))
    await asyncio.sleep(1.0)
    await engine.aclose(0)
    with pytest.raises(NoAnswerError):
        await send
    assert limiter.open == 0

    told = [record.message.split(" (")[0] for record in caplog.records if "limiter" in record.message]

    assert told == ["the limiter failed: RuntimeError", "the limiter failed: OSError"]


class StubbornLimiter:
    """A limiter that answers a cancellation with a permit, as one on Python's old `wait_for` may."""

    def __init__(self, grants: int) -> None:
        self.grants = grants
        self.recording = RecordingLimiter()

    async def acquire(self) -> Any:
        """Grant at once, and later only whoever is cancelled."""
        if self.grants:
            self.grants -= 1
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1e9)
            await asyncio.sleep(0.01)
        return await self.recording.acquire()

    def pause_until(self, deadline: float) -> None:
        """Do nothing."""


@pytest.mark.parametrize("grants", [0, 1])
async def test_permit_that_comes_after_the_close(virtual_clock: CheckedLoop, grants: int) -> None:
    """A permit that comes after the close is given back: nothing is sent any more."""
    limiter = StubbornLimiter(grants)
    engine = Engine(ScriptedTransport(then=NO_CONNECTION), limiter=limiter)
    await engine.track(1)
    send = asyncio.create_task(engine.send(2))
    await asyncio.sleep(5.0)
    report = await engine.aclose(1.0)
    await asyncio.sleep(5.0)
    assert len(engine.transport.requests) == grants
    assert limiter.recording.open == 0
    assert (report.stats.pending, report.stats.in_flight) == (0, 0)
    with pytest.raises(DeliveryError):
        await send

    assert tasks() == set()


async def test_two_clients_share_a_limiter(virtual_clock: CheckedLoop) -> None:
    """Two clients with one limiter keep its limit together, and both get on."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=2, jitter=0.0))
    one, other = (Engine(ScriptedTransport(), limiter=limiter, batching=ONE_EACH) for _ in range(2))
    await one.track_all(range(40))
    await other.track_all(range(40))
    await asyncio.gather(one.aclose(None), other.aclose(None))
    one, other = one.transport.times, other.transport.times

    assert len(one) == len(other) == 40
    assert worst_window([*one, *other], 1.0) <= 10
    assert abs(max(one) - max(other)) < 1.0


async def test_stats_tell_the_wait_for_the_limiter(virtual_clock: CheckedLoop) -> None:
    """`limiter_wait` is the time that requests waited for their permits."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, batching=ONE_EACH)
    await engine.track(1)
    await asyncio.sleep(3.0)
    assert engine.stats().oldest_age == near(3.0)
    limiter.open_gate()
    await engine.aclose()

    assert engine.stats().limiter_wait == near(3.0)


# --- life ---


async def test_idle_client_has_no_task(virtual_clock: CheckedLoop) -> None:
    """Before the first event and after the last one's outcome, no task of the client exists."""
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
    """A loop may end with a client in any state: no task is left pending, and asyncio has nothing to say."""
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
    """Where a shutdown cancels every task there is, a close still gives every event its outcome, and does not hang."""
    engine = await state()
    for task in tasks():
        task.cancel()
    await turns(5)
    assert engine.stats().in_flight == 0
    limiter = engine.dispatcher._sender._limiter
    if isinstance(limiter, RecordingLimiter):
        limiter.open_gate()
    report = await engine.aclose(None)
    assert report.stats.tracked == 1 == report.stats.delivered + report.stats.abandoned
    if state in (_lingering, _waiting_for_a_permit):
        assert report.clean


async def test_cancelled_pump_is_replaced(virtual_clock: CheckedLoop) -> None:
    """The next event starts a new pump where someone cancelled the old one, before its first step or later."""
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
    """A client that was used and is garbage-collected open warns, and starts nothing; its events still go out."""
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
    """A client that was never used, or that was closed, or whose constructor raised, is collected silently."""
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
    """Receipts that are thrown away, of delivered and of lost events, leave no trace."""
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


# --- everything at once ---


LATENCIES = st.sampled_from([0.0, 0.001, 0.05, 0.3, 2.0])
CLEAN = st.builds(Step, latency=LATENCIES)
FAULTS = st.one_of(
    CLEAN,
    st.builds(lambda latency: status(429, latency=latency), LATENCIES),
    st.builds(lambda latency: status(429, retry_after=3.0, latency=latency), LATENCIES),
    st.builds(Step, reply=st.just(Reply(status=503)), latency=LATENCIES, recorded=st.booleans()),
    st.builds(Step, reply=st.just(TIMED_OUT.reply), latency=LATENCIES, recorded=st.booleans()),
    st.builds(Step, reply=st.just(NO_CONNECTION.reply), latency=LATENCIES),
    st.builds(status, st.sampled_from([400, 401, 301])),
    st.builds(Step, reply=st.just(ZeroDivisionError()), latency=LATENCIES, recorded=st.booleans()),
)
BATCHINGS = st.builds(
    Batching,
    max_events=st.integers(1, 5),
    max_in_flight=st.integers(1, 4),
    linger=st.sampled_from([0.0, 0.1]),
    ordered=st.booleans(),
    by_session=st.booleans(),
)
TRACKED = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0.0, 0.0, 0.02, 0.5])), max_size=40)


async def feed(engine: Engine, tracked: list[tuple[str, float]]) -> list[Receipt]:
    """Track events of these visitors, with these pauses between them."""
    receipts = []
    for number, (visitor, pause) in enumerate(tracked):
        receipts.append(await engine.track(number, visitor))
        await asyncio.sleep(pause)
    return receipts


@settings(max_examples=most(60), deadline=None)
@given(tracked=TRACKED, steps=st.lists(CLEAN, max_size=30), batching=BATCHINGS, size=st.integers(1, 10))
def test_clean_replies_deliver_exactly_once(
    tracked: list[tuple[str, float]], steps: list[Step], batching: Batching, size: int
) -> None:
    """Where every reply is clean, every event is recorded exactly once, whatever the latencies and the policies."""

    async def test() -> list[int]:
        engine = Engine(ScriptedTransport(*steps), batching=batching, buffer=Buffer(max_events=size))
        await feed(engine, tracked)
        report = await engine.aclose(None)
        assert report.clean
        return engine.transport.recorded_numbers

    assert sorted(run(test())) == list(range(len(tracked)))


@settings(max_examples=most(60), deadline=None)
@given(
    tracked=TRACKED,
    steps=st.lists(FAULTS, max_size=30),
    batching=BATCHINGS.filter(lambda batching: batching.ordered or batching.by_session),
)
def test_ordered_means_ordered(tracked: list[tuple[str, float]], steps: list[Step], batching: Batching) -> None:
    """Where order is asked for, each visitor's events are first recorded in the order in which they were tracked."""

    async def test() -> list[tuple[str, int]]:
        engine = Engine(ScriptedTransport(*steps), batching=batching)
        await feed(engine, tracked)
        await engine.aclose(None)
        assert not engine.dispatcher._buffer._lanes
        return engine.transport.recorded

    orders: dict[str, list[int]] = defaultdict(list)
    for visitor, number in run(test()):
        if number not in orders[visitor]:
            orders[visitor].append(number)

    assert all(order == sorted(order) for order in orders.values())


@settings(max_examples=most(150), deadline=None)
@given(
    tracked=TRACKED,
    steps=st.lists(FAULTS, max_size=30),
    batching=BATCHINGS,
    size=st.integers(1, 20),
    attempts=st.integers(1, 4),
    closed_after=st.none() | st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    limit=st.none() | st.builds(RateLimit, requests=st.integers(1, 10)),
    cancelled=st.lists(st.sampled_from([0.0, 0.05, 0.4, 1.5]), max_size=5),
    broken=st.integers(0, 2),
)
def test_every_outcome_is_true(  # noqa: C901, PLR0915, PLR0917 - everything at once
    tracked: list[tuple[str, float]],
    steps: list[Step],
    batching: Batching,
    size: int,
    attempts: int,
    closed_after: float | None,
    limit: RateLimit | None,
    cancelled: list[float],
    broken: int,
) -> None:
    """Whatever fails, is cancelled or closed: every event has one outcome, and it agrees with what was recorded."""

    async def test() -> tuple[dict[int, Outcome], Counter[int]]:
        script = iter(steps)

        def answer(request: Request) -> Step:
            step = next(script, OK)
            # A server that has recorded the events does not call the same request malformed.
            malformed = isinstance(step.reply, Reply) and step.reply.status == 400
            return OK if malformed and set(request.numbers) & set(transport.recorded_numbers) else step

        transport = ScriptedTransport(then=answer)
        told: list[UndeliveredEvent] = []
        local = LocalLimiter(limit)
        engine = Engine(
            transport,
            limiter=RecordingLimiter(*[OSError()] * broken) if broken else local,
            batching=batching,
            buffer=Buffer(max_events=size),
            retry=RetryPolicy(max_attempts=attempts),
            on_outcome=into(told),
        )
        receipts: dict[int, Receipt] = {}
        outcomes: dict[int, Outcome] = {}

        async def feeder() -> None:
            for number, (visitor, pause) in enumerate(tracked):
                try:
                    receipts[number] = await engine.track(number, visitor)
                except ClientClosedError:
                    return
                await asyncio.sleep(pause)

        async def sender(number: int, patience: float) -> None:
            try:
                async with asyncio.timeout(patience):
                    outcomes[number] = await engine.send(number)
            except DeliveryError as error:
                outcomes[number] = error.outcome
            except (TimeoutError, ClientClosedError):
                pass

        feeding = asyncio.create_task(feeder())
        sends = [asyncio.create_task(sender(1000 + index, after)) for index, after in enumerate(cancelled)]
        if closed_after is None:
            await feeding
        else:
            await asyncio.sleep(closed_after)
        report = await engine.aclose(closed_after)
        await asyncio.wait({feeding, *sends})
        assert (report.stats.pending, report.stats.in_flight) == (0, 0)
        for number, receipt in receipts.items():
            assert receipt.outcome is not None
            outcomes[number] = receipt.outcome
        undelivered = Counter(kept.event.product_id for kept in told)  # type: ignore[attr-defined]
        assert undelivered == Counter(n for n in receipts if not isinstance(outcomes[n], Delivered))
        await turns(5)
        assert tasks() == set()
        assert transport.in_flight == 0
        assert engine.dispatcher._sender._wire_slots._value == batching.max_in_flight
        return outcomes, Counter(transport.recorded_numbers)

    outcomes, recorded = run(test())

    for number, outcome in outcomes.items():
        times = recorded[number]
        if isinstance(outcome, Delivered):
            assert times >= 1
            assert times == 1 or outcome.maybe_duplicate
        else:
            assert times == 0 or outcome.maybe_recorded
        assert outcome.attempts >= times
