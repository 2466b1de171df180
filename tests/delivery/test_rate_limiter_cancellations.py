"""If callers are cancelled while they wait in the local limiter, it grants its permits as before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._outcome import Abandoned, Delivered
from retailrocket_async._queue.options import Batching
from tests.support.engine_state import buffer_of, flight_tasks, free_wire_slots, paused_until, pump_task
from tests.support.fakes import (
    ROUNDING,
    Engine,
    ScriptedTransport,
    now,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


IN_FLIGHT = 2


LIMIT = RateLimit(requests=2, per=10.0, burst=1, jitter=0.0)


async def in_the_queue(limiter: LocalLimiter) -> None:
    """A caller waits in the queue behind another one."""
    ahead = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    ahead.add_done_callback(lambda task: task.result().done(answered=True) if not task.cancelled() else None)


async def in_the_bucket(limiter: LocalLimiter) -> None:
    """The first caller of the queue waits for the pace."""
    permit = await limiter.acquire()
    assert permit is not None
    permit.done(answered=True)


async def in_the_guard(limiter: LocalLimiter) -> None:
    """A caller waits because the window is full."""
    permits = [await limiter.acquire() for _ in range(2)]
    await asyncio.sleep(5.0)
    for permit in permits:
        assert permit is not None
        permit.done(answered=True)


async def in_a_pause(limiter: LocalLimiter) -> None:
    """A caller waits for the end of a pause that the server has asked for."""
    limiter.pause_until(now() + 50.0)


async def who_pumps(engine: Engine) -> asyncio.Task[Any]:
    """Make the pump wait for the limiter."""
    await engine.track(1)
    buffer_of(engine).begin_flush()
    await turns()
    assert pump_task(engine) is not None
    return pump_task(engine)


async def who_sends(engine: Engine) -> asyncio.Task[Any]:
    """Make a direct send wait for the limiter."""
    task = asyncio.create_task(engine.send(1))
    await turns()
    return task


@pytest.mark.parametrize("who", [who_pumps, who_sends])
@pytest.mark.parametrize("where", [in_the_queue, in_the_bucket, in_the_guard, in_a_pause])
def test_local_limiter_grants_as_before(
    where: Callable[[LocalLimiter], Coroutine[Any, Any, None]],
    who: Callable[[Engine], Coroutine[Any, Any, asyncio.Task[Any]]],
) -> None:
    """If a request is cancelled in the limiter, later requests leave as if it had never been made."""

    async def times(*, with_a_cancelled: bool) -> list[float]:
        limiter = LocalLimiter(LIMIT)
        engine = Engine(
            ScriptedTransport(), limiter=limiter, batching=Batching(linger=0.0, max_events=1, max_in_flight=IN_FLIGHT)
        )
        await where(limiter)
        if with_a_cancelled:
            task = await who(engine)
            await asyncio.sleep(1.0)
            assert engine.transport.requests == []
            task.cancel()
            await asyncio.wait({task})
        else:
            await turns()
            await asyncio.sleep(1.0)
        begin = len(engine.transport.requests)
        sends = [asyncio.create_task(engine.send(number)) for number in range(10, 15)]
        await asyncio.wait(sends)
        report = await engine.aclose(None)
        assert report.clean
        assert free_wire_slots(engine) == IN_FLIGHT
        return [request.at for request in engine.transport.requests[begin:] if request.numbers != [1]]

    assert run(times(with_a_cancelled=True)) == pytest.approx(run(times(with_a_cancelled=False)), abs=ROUNDING)


@pytest.mark.parametrize("turn", range(4))
async def test_retry_cancelled_in_a_throttled_limiter(virtual_clock: CheckedLoop, turn: int) -> None:
    """If a flight is cancelled in a limiter that a 429 has slowed down, no permit and no other event is lost."""
    limiter = LocalLimiter(LIMIT)
    engine = Engine(
        ScriptedTransport(429),
        limiter=limiter,
        batching=Batching(linger=0.0, max_events=1, max_in_flight=IN_FLIGHT),
        retry=RetryPolicy(initial_backoff=0.1, max_backoff=0.1),
    )
    receipt = await engine.track(1)
    await asyncio.sleep(1.0)
    opens = paused_until(limiter)
    assert opens > now()
    (flight,) = flight_tasks(engine)
    assert flight is not None
    later = [asyncio.create_task(engine.send(number)) for number in (2, 3)]
    if turn:
        # The pause ends in this turn of the loop, or in one of the next.
        await asyncio.sleep(opens - now())
        await turns(turn - 1)
    flight.cancel()
    await asyncio.wait({flight, *later})
    assert isinstance(receipt.outcome, Abandoned | Delivered)
    assert engine.transport.sent_numbers.count(1) <= 2
    if isinstance(receipt.outcome, Abandoned):
        assert receipt.outcome.reason == "cancelled"
    if engine.transport.sent_numbers.count(1) == 1:
        assert engine.transport.times[1] == pytest.approx(opens, abs=ROUNDING)
    report = await engine.aclose()

    assert report.stats.delivered == 2 + isinstance(receipt.outcome, Delivered)
    assert free_wire_slots(engine) == IN_FLIGHT
    assert tasks() == set()
