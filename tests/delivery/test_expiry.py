"""No event older than `Buffer.max_age` is sent: it gets its outcome in time, wherever it waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._runtime.loop_end import FAR
from tests.support.effort import most
from tests.support.engine_state import buffer_of, scheduled_timers
from tests.support.fakes import (
    NO_CONNECTION,
    SLOW_RETRY,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    into,
    now,
    number_of,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent

MAX_AGE = 10.0
PRECISION = 0.25
"""Seconds between two checks for events that are too old."""

TOO_OLD = Dropped(reason="expired")


def engine_with(transport: ScriptedTransport, **options: Any) -> Engine:
    """Return an engine whose events expire after ten seconds."""
    options.setdefault("batching", Batching(linger=0.0, max_in_flight=2))
    return Engine(transport, buffer=Buffer(max_age=MAX_AGE, **options.pop("bounds", {})), **options)


def timers() -> int:
    """Return how many timers the loop has, except the one by which the client notices the end of the loop."""
    scheduled = scheduled_timers()
    return sum(not timer.cancelled() and timer.when() < FAR for timer in scheduled)


async def ended(receipt: Receipt, *, came_at: float = 0.0) -> Outcome:
    """Assert that an outcome comes when the event is `MAX_AGE` old, and return the outcome."""
    outcome = await receipt
    assert MAX_AGE <= now() - came_at <= MAX_AGE + PRECISION + 0.001
    return outcome


async def test_too_old_in_the_buffer(virtual_clock: CheckedLoop) -> None:
    """If an event gets no permit, it is dropped in time without any call: settled, counted and reported."""
    reported: list[UndeliveredEvent] = []
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter, on_outcome=into(reported))
    receipts = await engine.track_all(range(3))
    assert [await ended(receipt) for receipt in receipts] == [TOO_OLD] * 3
    await turns(5)
    assert engine.stats().dropped_by == {"expired": {"view": 3}}
    assert [(number_of(kept), kept.outcome) for kept in reported] == [(number, TOO_OLD) for number in range(3)]
    limiter.open_gate()
    await engine.flush()
    await engine.aclose()

    assert engine.transport.requests == []


async def test_mixed_ages(virtual_clock: CheckedLoop) -> None:
    """If only some events of a batch are too old, they are dropped; the others are sent, and not earlier than usual."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter)
    old = await engine.track_all(range(3))
    await asyncio.sleep(5.0)
    young = await engine.track_all(range(3, 6))
    assert [await ended(receipt) for receipt in old] == [TOO_OLD] * 3
    limiter.open_gate()

    assert [type(await receipt) for receipt in young] == [Delivered] * 3
    assert [request.numbers for request in engine.transport.requests] == [[3, 4, 5]]


async def test_take_looks_itself(virtual_clock: CheckedLoop) -> None:
    """If a permit comes when an event is just too old, before the next check, the event is not sent."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter)
    await asyncio.sleep(0.1)
    old = await engine.track(1)
    await asyncio.sleep(MAX_AGE - 0.001)
    young = await engine.track(2)
    await asyncio.sleep(0.002)
    assert not old.done()
    limiter.grant()
    await turns()

    assert old.outcome == TOO_OLD
    assert isinstance(await young, Delivered)
    assert engine.transport.sent_numbers == [2]


DOWN = [NO_CONNECTION] * 5


@pytest.mark.parametrize(("script", "then", "state"), [(DOWN, NO_CONNECTION, "down"), ([401], 401, "halted")])
async def test_too_old_while_nothing_goes_out(
    virtual_clock: CheckedLoop, script: list[Step | int], then: Step | int, state: str
) -> None:
    """If the API is down or sending is halted, events expire in time, in the buffer and between attempts."""
    transport = ScriptedTransport(*script, then=then)
    retry = RetryPolicy(initial_backoff=0.2, max_backoff=1e4, max_elapsed=1e6, max_halt=1e6, max_attempts=10**6)
    engine = engine_with(
        transport, retry=retry, renewable=True, batching=Batching(max_events=1, linger=0.0, max_in_flight=2)
    )
    receipts = await engine.track_all(range(6))
    outcomes = [await ended(receipt) for receipt in receipts]
    assert engine.stats().state == state
    sent = set(transport.sent_numbers)
    for number, outcome in enumerate(outcomes):
        if number in sent:
            assert isinstance(outcome, Abandoned)
            assert (outcome.reason, outcome.maybe_recorded) == ("expired", False)
            assert outcome.attempts == transport.sent_numbers.count(number)
        else:
            assert outcome == TOO_OLD
    assert 1 <= len(sent) <= 2
    assert max(transport.times) < MAX_AGE
    # Let time pass, to show that no event and no timer is left.
    await asyncio.sleep(1e5)

    assert timers() == 0
    assert tasks() == set()


async def test_events_come_after_an_idle_outage(virtual_clock: CheckedLoop) -> None:
    """If an event is tracked after a long idle time while the API is still down, it is given up in time."""
    transport = ScriptedTransport(then=NO_CONNECTION)
    retry = RetryPolicy(initial_backoff=0.1, max_backoff=1e4, max_elapsed=20.0)
    engine = Engine(transport, retry=retry, batching=Batching(linger=0.0))
    await (await engine.track(1))
    await asyncio.sleep(1e5)
    assert engine.stats().state == "down"
    assert timers() == 0
    for number, direct in enumerate([False, True], start=2):
        begin = now()
        if direct:
            with pytest.raises(Exception, match="retries_exhausted"):
                await engine.send(number)
        else:
            await (await engine.track(number))
        assert now() - begin <= 20.0 + PRECISION + 0.001


async def test_too_old_for_a_retry(virtual_clock: CheckedLoop) -> None:
    """If some events of a batch that waits for its retry become too old, only the others are sent again."""
    step = Step(reply=Reply(status=503, retry_after=6.0))
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(step), limiter=limiter)
    old = await engine.track(1)
    await asyncio.sleep(6.0)
    young = await engine.track(2)
    limiter.open_gate()
    outcome = await old
    assert isinstance(outcome, Abandoned)
    assert (outcome.reason, outcome.maybe_recorded, outcome.attempts, outcome.status) == ("expired", True, 1, 503)
    answer = await young

    assert isinstance(answer, Delivered)
    assert answer.attempts == 2
    assert [request.numbers for request in engine.transport.requests] == [[1, 2], [2]]


@pytest.mark.parametrize("gated", [False, True])
async def test_too_old_between_attempts(virtual_clock: CheckedLoop, gated: bool) -> None:  # noqa: FBT001
    """If a batch becomes too old in its backoff or while it waits for a permit, it ends in time and is not resent."""
    limiter = RecordingLimiter(gated=True)
    retry = RetryPolicy(initial_backoff=0.001, max_backoff=0.001) if gated else SLOW_RETRY
    engine = engine_with(ScriptedTransport(503), limiter=limiter, retry=retry)
    receipt = await engine.track(1)
    await turns(5)
    limiter.grant()
    outcome = await ended(receipt)
    assert isinstance(outcome, Abandoned)
    assert (outcome.reason, outcome.attempts) == ("expired", 1)
    await turns()
    limiter.open_gate()
    await asyncio.sleep(60.0)

    assert len(engine.transport.requests) == 1
    assert timers() == limiter.open == 0
    assert tasks() == set()


async def test_too_old_in_the_turn_of_the_permit(virtual_clock: CheckedLoop) -> None:
    """If a retry's permit comes when an event is just too old, before the next check, the event is not sent again."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(
        ScriptedTransport(503), limiter=limiter, retry=RetryPolicy(initial_backoff=0.001, max_backoff=0.001)
    )
    await asyncio.sleep(0.1)
    old, began = await engine.track(1), now()
    await asyncio.sleep(1.0)
    young = await engine.track(2)
    limiter.grant()
    await asyncio.sleep(began + MAX_AGE + 0.001 - now())
    assert not old.done()
    limiter.grant()
    await turns()

    assert isinstance(old.outcome, Abandoned)
    assert old.outcome.reason == "expired"
    assert isinstance(await young, Delivered)
    assert engine.transport.sent_numbers == [1, 2, 2]


async def test_parts_that_grow_too_old(virtual_clock: CheckedLoop) -> None:
    """If the unsent half of a divided batch becomes too old, it is abandoned, with the whole batch's one attempt."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(400), limiter=limiter)
    receipts = await engine.track_all(range(4))
    await turns(5)
    limiter.grant(1)
    await asyncio.sleep(1.0)
    limiter.grant(1)
    outcomes = [await ended(receipt) for receipt in receipts[2:]]
    assert [type(receipt.outcome) for receipt in receipts[:2]] == [Delivered] * 2
    for outcome in outcomes:
        assert isinstance(outcome, Abandoned)
        assert (outcome.reason, outcome.attempts, outcome.maybe_recorded) == ("expired", 1, False)

    assert [request.numbers for request in engine.transport.requests] == [[0, 1, 2, 3], [0, 1]]


async def test_parts_that_were_never_sent(virtual_clock: CheckedLoop) -> None:
    """If parts of a batch that was never sent become too old, they are dropped and not abandoned."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter)
    receipts = await engine.track_all(range(4))
    # Another batch got a 413 while this batch waits for its permit.
    buffer_of(engine).cap.bytes = receipts_size(engine) // 2 + 10
    await turns(5)
    limiter.grant(1)
    outcomes = [await ended(receipt) for receipt in receipts[2:]]

    assert outcomes == [TOO_OLD] * 2
    assert [type(receipt.outcome) for receipt in receipts[:2]] == [Delivered] * 2


def receipts_size(engine: Engine) -> int:
    """Return the bytes of the waiting events."""
    return engine.stats().pending_bytes


# --- waiting for space ---


async def test_age_counts_from_the_call(virtual_clock: CheckedLoop) -> None:
    """If an event waited for space, its age counts from the call, so it is dropped with events of that time."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter, bounds={"max_events": 1})
    await engine.track(0)
    calls = [asyncio.create_task(engine.track(number)) for number in (1, 2)]
    await asyncio.sleep(6.0)
    late = asyncio.create_task(engine.track(3))
    receipts = [await call for call in calls]

    assert [await ended(receipt) for receipt in receipts] == [TOO_OLD] * 2
    assert await ended(await late, came_at=6.0) == TOO_OLD
    assert engine.stats().dropped_by == {"expired": {"view": 4}}
    assert engine.stats().waiting == 0


@pytest.mark.parametrize("overflow", ["wait", "raise", "drop_newest", "drop_oldest", "shed"])
async def test_what_is_too_old_makes_room(virtual_clock: CheckedLoop, overflow: str) -> None:
    """If a waiting event is too old, it is dropped for a new one under every policy, and no other event is evicted."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter, bounds={"max_events": 2, "overflow": overflow})
    await asyncio.sleep(0.1)
    old = await engine.track(0)
    await asyncio.sleep(5.0)
    young = await engine.track(1)
    await asyncio.sleep(5.001)
    assert not old.done()
    new = engine.track_nowait(2)
    assert (old.outcome, young.outcome, new.outcome) == (TOO_OLD, None, None)
    limiter.open_gate()
    await engine.aclose()


async def test_caller_who_comes_when_the_queue_grows_too_old(virtual_clock: CheckedLoop) -> None:
    """If a caller finds only waiting callers whose events are too old, the caller's event is accepted immediately."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter, bounds={"max_events": 1})
    await asyncio.sleep(0.1)
    await engine.track(0)
    waiting = asyncio.create_task(engine.track(1))
    await asyncio.sleep(MAX_AGE + 0.001)
    receipt = engine.track_nowait(2)
    assert (await waiting).outcome == TOO_OLD
    limiter.open_gate()

    assert isinstance(await receipt, Delivered)


async def test_waiters_get_the_room(virtual_clock: CheckedLoop) -> None:
    """If events become too old, waiting callers are admitted."""
    limiter = RecordingLimiter(gated=True)
    engine = engine_with(ScriptedTransport(), limiter=limiter, bounds={"max_events": 1})
    old = await engine.track(0)
    await asyncio.sleep(5.0)
    call = asyncio.create_task(engine.track(1))
    await ended(old)
    limiter.open_gate()

    assert isinstance(await (await call), Delivered)
    assert engine.transport.sent_numbers == [1]


# --- closing ---


@pytest.mark.parametrize("open_at_the_close", [False, True])
async def test_no_timer_is_left(virtual_clock: CheckedLoop, open_at_the_close: bool) -> None:  # noqa: FBT001
    """If a client has no open event, or is closed, it has no timer."""
    limiter = RecordingLimiter(gated=open_at_the_close)
    engine = engine_with(ScriptedTransport(), limiter=limiter)
    await engine.track_all(range(3))
    await asyncio.sleep(1.0)
    assert timers() == int(open_at_the_close)
    await engine.aclose(0.5)
    await turns()

    assert timers() == 0
    assert tasks() == set()


# --- properties ---

STEPS = st.sampled_from([200, 200, 400, 401, 413, 429, 503, NO_CONNECTION])


@given(
    script=st.lists(STEPS, max_size=25),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.3, 2.0]), max_size=25),
    batching=st.builds(
        Batching,
        max_events=st.integers(1, 6),
        max_in_flight=st.integers(1, 3),
    ),
    room=st.integers(1, 10),
    overflow=st.sampled_from(["wait", "drop_oldest", "shed"]),
)
@settings(max_examples=most(150), deadline=None)
def test_nothing_is_sent_stale(
    script: list[Step | int], pauses: list[float], batching: Batching, room: int, overflow: str
) -> None:
    """If the API gives any answers, no request carries an event that is too old, and each event gets its outcome."""

    async def test() -> None:
        transport = ScriptedTransport(*script)
        engine = Engine(
            transport,
            batching=batching,
            buffer=Buffer(max_age=2.0, max_events=room, overflow=overflow),  # type: ignore[arg-type]
            renewable=True,
        )
        came_at: dict[int, float] = {}

        async def call(number: int) -> Receipt:
            came_at[number] = now()
            return await engine.track(number, f"v{number % 3}")

        calls = []
        for number, pause in enumerate(pauses):
            calls.append(asyncio.create_task(call(number)))
            await asyncio.sleep(pause)
        receipts = [await each for each in calls]
        await engine.flush()
        assert all(receipt.done() for receipt in receipts)
        for request in transport.requests:
            assert all(request.at - came_at[number] < 2.0 + 1e-6 for number in request.numbers)
        for number, receipt in enumerate(receipts):
            if isinstance(receipt.outcome, Dropped):
                assert number not in transport.sent_numbers
            if isinstance(receipt.outcome, Abandoned) and receipt.outcome.reason == "expired":
                assert number in transport.sent_numbers
        await engine.aclose()

    run(test())
