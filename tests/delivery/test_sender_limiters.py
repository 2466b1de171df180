"""If a limiter raises, never returns or breaks its contract, no event is lost; a slow one only costs time.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    DeliveryError,
    NoAnswerError,
)
from retailrocket_async._outcome import Delivered
from retailrocket_async._queue.options import Batching
from tests.contracts.limiter import worst_window
from tests.support.fakes import (
    NEVER,
    NO_CONNECTION,
    OK,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    near,
    status,
    tasks,
)

if TYPE_CHECKING:
    from tests.support.virtual_time import CheckedLoop

# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1)
"""Settings by which each event is sent in a request of its own."""


async def test_raising_limiter_loses_no_batch(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If the limiter raises, events wait in the buffer and leave when it works again; there is one log record."""
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
    """If the limiter raises for a batch's retry, the batch waits until it works again, and is delivered."""
    limiter = RecordingLimiter(None, *[OSError()] * 5)
    engine = Engine(ScriptedTransport(503), limiter=limiter)
    outcome = await (await engine.track(1))

    assert (limiter.asked, engine.stats().requests, engine.stats().retries) == (7, 2, 1)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=True)


async def test_raising_limiter_delays_a_direct_send(virtual_clock: CheckedLoop) -> None:
    """If the limiter raises for a direct send, the send asks again, as often as its retry policy allows."""
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
    """If there is no backoff, a direct send asks a broken limiter `max_attempts` times and then fails."""
    limiter = RecordingLimiter(*[OSError()] * 10_000)
    policy = RetryPolicy(max_attempts=7, initial_backoff=backoff, max_backoff=backoff)
    engine = Engine(ScriptedTransport(), limiter=limiter, retry=policy)
    with pytest.raises(NoAnswerError) as caught:
        await engine.send(1)

    assert (caught.value.attempts, caught.value.maybe_recorded) == (0, False)
    assert limiter.asked == 7


async def test_limiter_that_is_cancelled_itself_loses_nothing(virtual_clock: CheckedLoop) -> None:
    """If a task that the limiter awaits is cancelled, this is a failure of the limiter; no task of the client ends."""
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
    """If permits and pauses of a limiter raise, there is one log record, and every event gets its outcome."""
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

    reported = [record.message.split(" (")[0] for record in caplog.records if "limiter" in record.message]

    assert reported == ["the limiter failed: RuntimeError", "the limiter failed: OSError"]


class StubbornLimiter:
    """Answers a cancellation with a permit, as a limiter that uses Python's old `wait_for` may do."""

    def __init__(self, grants: int) -> None:
        self.grants = grants
        self.recording = RecordingLimiter()

    async def acquire(self) -> Any:
        """Grant the first `grants` permits at once, and later ones only to callers that were cancelled."""
        if self.grants:
            self.grants -= 1
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1e9)
            await asyncio.sleep(0.01)
        return await self.recording.acquire()

    def pause_until(self, deadline: float) -> None:
        """Ignore the pause."""


@pytest.mark.parametrize("grants", [0, 1])
async def test_permit_that_comes_after_the_close(virtual_clock: CheckedLoop, grants: int) -> None:
    """If a permit comes after the close, it is returned, and nothing is sent."""
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
    """If two clients share a limiter, they stay within its limit together, and both make progress."""
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
    """If requests wait for permits, `limiter_wait` is the time that they waited."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, batching=ONE_EACH)
    await engine.track(1)
    await asyncio.sleep(3.0)
    assert engine.stats().oldest_age == near(3.0)
    limiter.open_gate()
    await engine.aclose()

    assert engine.stats().limiter_wait == near(3.0)
