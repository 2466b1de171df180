"""The intake, which accepts tracked events: callers wait for space in order, and a long feed lets other tasks run.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._errors import (
    BufferFullError,
)
from retailrocket_async._events.models import Search
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.engine_state import buffer_of
from tests.support.fakes import (
    CODEC,
    NEVER,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    event,
    make_client,
    turns,
)
from tests.support.virtual_time import CheckedLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1)
"""Settings by which each event is sent in a request of its own."""


async def test_track_waits_only_where_the_buffer_is_full(virtual_clock: CheckedLoop) -> None:
    """If the buffer has space, `track` returns in the same turn; otherwise it waits."""
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
    """If the buffered bytes reach their bound, the buffer is full, whatever the number of events."""
    size = len(CODEC.encode(event(10))) + 1

    limiter = RecordingLimiter(gated=True)
    engine = Engine(
        ScriptedTransport(), limiter=limiter, buffer=Buffer(max_bytes=2048), batching=Batching(max_bytes=1024)
    )
    for number in itertools.count():
        if not buffer_of(engine).fits(len(CODEC.encode(event(number))) + 1):
            break
        engine.track_nowait(number)
    with pytest.raises(BufferFullError, match=rf"full: {number} events, \d+ bytes, 0 callers waiting"):
        engine.track_nowait(number)
    await engine.aclose(0)

    assert engine.stats().tracked == pytest.approx(2048 // size, abs=1)


async def test_waiters_are_served_in_order_one_by_one(virtual_clock: CheckedLoop) -> None:
    """If space becomes free, the caller that has waited longest is accepted next."""
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
    """If a caller is cancelled while it waits, its event is not accepted, and later callers move up."""
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
    """If a large event's caller is cancelled, smaller events behind it that fit are accepted in the same step."""
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
    """If a caller is cancelled in the turn in which its event was accepted, the event stays accepted."""
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
    """If other callers wait, `track_nowait` raises, even if its own event would fit."""
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


@pytest.mark.untraced
@pytest.mark.parametrize("lazy", [False, True])
async def test_large_feed_lets_others_run(virtual_clock: CheckedLoop, lazy: bool) -> None:  # noqa: FBT001
    """If 100,000 events are tracked from an iterable or an async one, other tasks run after every 250 events."""
    events = [event(number) for number in range(1000)] * 100

    async def feed() -> AsyncIterator[Any]:
        for each in events:
            yield each

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
    receipts = await client.track_many(feed() if lazy else events)
    assert len(receipts) == 100_000
    running.cancel()
    await client.aclose(0)

    assert ran >= 400
    assert longest <= 250


@pytest.mark.parametrize(("size", "most"), [(1000, 125), (10_000, 25)])
@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
async def test_large_events_let_others_run_sooner(virtual_clock: CheckedLoop, size: int, most: int, full: bool) -> None:  # noqa: FBT001
    """If events are large, each KiB counts as one more event, so other tasks run sooner, even if events are dropped."""
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
