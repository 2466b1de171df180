"""If a close is cancelled at any of its awaits, every event is still settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._outcome import Abandoned, Dropped
from retailrocket_async._queue.options import Batching
from tests.support.cancelling import cancel
from tests.support.engine_state import free_wire_slots, hooks_ending_task
from tests.support.fakes import (
    PARKED,
    ROUNDING,
    SLOW_RETRY,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    now,
    status,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, block

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from retailrocket_async._receipt import Receipt

IN_FLIGHT = 2


async def parked_engine(close: Callable[[], Coroutine[Any, Any, None]] | None = None) -> tuple[Engine, list[Receipt]]:
    """Return an engine with one batch in flight, one that waits for its retry, and one in the buffer."""
    transport = ScriptedTransport(status(429), then=PARKED, close=close)
    batching = Batching(max_events=1, max_in_flight=IN_FLIGHT)
    engine = Engine(transport, batching=batching, retry=SLOW_RETRY)
    return engine, await engine.track_all(range(3))


async def test_close_cancelled_in_its_flush(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled while it waits for the delivery, each event gets the outcome of a passed deadline."""
    engine, receipts = await parked_engine()
    close = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(1.0)
    await cancel(close)
    backing_off, on_wire, buffered = (receipt.outcome for receipt in receipts)
    assert isinstance(backing_off, Abandoned)
    assert isinstance(on_wire, Abandoned)
    assert (backing_off.maybe_recorded, on_wire.maybe_recorded) == (False, True)
    assert buffered == Dropped(reason="closed")
    report = await engine.aclose()
    assert len(report.undelivered) == 3
    await turns(5)

    assert free_wire_slots(engine) == IN_FLIGHT
    assert (engine.transport.in_flight, engine.transport.closed) == (0, 1)
    assert tasks() == set()


async def test_close_cancelled_in_its_first_turn(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled before its first step, the client stays open."""
    engine, _ = await parked_engine()
    close = asyncio.create_task(engine.aclose(None))
    await cancel(close)
    await engine.track(4)
    assert not engine.dispatcher.closed
    await engine.aclose(0)


async def test_close_cancelled_while_connections_close(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled while connections close, its report is available, and the connections still close."""
    closed = asyncio.Event()

    async def slowly() -> None:
        await asyncio.sleep(0.4)
        closed.set()

    engine = Engine(ScriptedTransport(close=slowly))
    await engine.track(1)
    close = asyncio.create_task(engine.aclose(10.0))
    await asyncio.sleep(0.3)
    assert engine.transport.closed == 1
    await cancel(close)
    assert (await engine.aclose()).stats.delivered == 1
    await asyncio.wait_for(closed.wait(), 1.0)
    await turns()

    assert tasks() == set()


async def test_close_cancelled_while_it_drops(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled while it drops a full buffer, the remaining events are dropped in one step."""
    engine = Engine(
        ScriptedTransport(), limiter=RecordingLimiter(gated=True), batching=Batching(max_events=1, linger=0.0)
    )
    receipts = await engine.track_all(range(5_000))
    close = asyncio.create_task(engine.aclose(1.0))
    await asyncio.sleep(0.9)
    while not 0 < engine.stats().dropped < 5_000:
        block(0.0001)
        await asyncio.sleep(0)
    await cancel(close)
    assert {receipt.outcome for receipt in receipts} == {Dropped(reason="closed")}
    assert len((await engine.aclose()).undelivered) == 5_000
    await turns(5)

    assert tasks() == set()


async def test_close_cancelled_while_the_hook_is_told(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled while it waits for the hook, its report is available, and the hook gets its events."""
    reported: list[int] = []

    async def hook(events: Any) -> None:
        await asyncio.sleep(5.0)
        reported.extend(range(len(events)))

    engine = Engine(ScriptedTransport(then=400), batching=Batching(linger=0.0), on_outcome=hook)
    await (await engine.track(1))
    close = asyncio.create_task(engine.aclose(10.0))
    await asyncio.sleep(1.0)
    await cancel(close)
    assert (await engine.aclose()).stats.rejected == 1
    await asyncio.sleep(5.0)

    assert reported == [0]
    assert tasks() == set()


async def test_second_close_cancelled(virtual_clock: CheckedLoop) -> None:
    """If a second close is cancelled, the first one continues."""
    engine, receipts = await parked_engine()
    first = asyncio.create_task(engine.aclose(10.0))
    second = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(1.0)
    await cancel(second)
    assert not first.done()
    assert not receipts[1].done()
    report = await first

    assert now() == pytest.approx(10.0, abs=ROUNDING)
    assert len(report.undelivered) == 3


async def test_closing_task_cancelled(virtual_clock: CheckedLoop) -> None:
    """If a shutdown cancels the task that closes the connections, the close still returns."""

    async def forever() -> None:
        await asyncio.sleep(1e9)

    engine, _ = await parked_engine(forever)
    close = asyncio.create_task(engine.aclose(0))
    await asyncio.sleep(0.2)
    for task in tasks() - {close}:
        task.cancel()

    assert (await close).stats.tracked == 3


async def test_ending_of_the_hooks_cancelled(virtual_clock: CheckedLoop) -> None:
    """If a shutdown cancels the task that ends the hooks, the close returns, and the hook finishes its call."""
    reported: list[int] = []

    async def hook(events: Any) -> None:
        await asyncio.sleep(5.0)
        reported.extend(range(len(events)))

    engine = Engine(ScriptedTransport(then=400), batching=Batching(linger=0.0), on_outcome=hook)
    await (await engine.track(1))
    close = asyncio.create_task(engine.aclose(10.0))
    await asyncio.sleep(1.0)
    await cancel(hooks_ending_task(engine))
    assert (await close).stats.rejected == 1
    assert now() < 2.0
    await asyncio.sleep(5.0)

    assert reported == [0]
