"""The sender's attempts: one permit for each, waits within the policy, and an outcome in time.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._outcome import Abandoned, Delivered
from retailrocket_async._queue.options import Batching
from tests.support.fakes import (
    NO_CONNECTION,
    OK,
    ROUNDING,
    SLOW_RETRY,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    near,
    status,
)

if TYPE_CHECKING:
    from tests.support.virtual_time import CheckedLoop

# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1)
"""Settings by which each event is sent in a request of its own."""


async def test_one_permit_for_each_attempt(virtual_clock: CheckedLoop) -> None:
    """If a batch, a retry or a direct send makes an attempt, it has its own permit, which learns the attempt's end."""
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
    """If attempts fail, each wait is at most the doubled backoff and never above the maximum."""
    policy = RetryPolicy(max_attempts=8, initial_backoff=1.0, max_backoff=5.0)

    engine = Engine(ScriptedTransport(then=503), retry=policy)
    await (await engine.track(1))
    waits = [later - at - 0.05 for at, later in itertools.pairwise(engine.transport.times)]

    assert len(waits) == 7
    assert all(-ROUNDING <= wait <= limit + ROUNDING for wait, limit in zip(waits, [1, 2, 4, 5, 5, 5, 5], strict=True))


async def test_retry_after_pauses_everybody(virtual_clock: CheckedLoop) -> None:
    """If one answer has `Retry-After`, its own batch, other batches and direct sends all wait."""
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
    """If `Retry-After` is a day, the pause is cut to a minute, and the batch is not abandoned for it."""
    engine = Engine(ScriptedTransport(status(503, retry_after=asked)))
    outcome = await (await engine.track(1))
    times = engine.transport.times

    assert isinstance(outcome, Delivered)
    assert times == [near(0.1), near(60.15)]


@pytest.mark.parametrize(
    ("step", "reported"),
    [
        (status(503), {"maybe_recorded": True, "status": 503}),
        (status(429), {"maybe_recorded": False, "status": 429}),
        (NO_CONNECTION, {"maybe_recorded": False, "failure": "connect: ConnectError"}),
        (TIMED_OUT, {"maybe_recorded": True, "failure": "timeout: ReadTimeout"}),
    ],
)
async def test_attempts_run_out(virtual_clock: CheckedLoop, step: Step, reported: dict[str, Any]) -> None:
    """If `max_attempts` requests have failed, the event is abandoned, and its outcome has the last failure."""
    engine = Engine(ScriptedTransport(then=step), retry=RetryPolicy(max_attempts=4))
    outcome, requests = await (await engine.track(1)), len(engine.transport.requests)

    assert outcome == Abandoned(reason="retries_exhausted", attempts=4, elapsed=outcome.elapsed, **reported)
    assert requests == 4


async def test_time_runs_out(virtual_clock: CheckedLoop) -> None:
    """If `max_elapsed` seconds have passed, no attempt starts, and the outcome comes with the last attempt's end."""
    policy = RetryPolicy(max_attempts=10**6, max_elapsed=20.0, initial_backoff=2.0, max_backoff=2.0)
    engine = Engine(ScriptedTransport(then=status(503, latency=1.0)), retry=policy)
    outcome = await (await engine.track(1))
    last = max(engine.transport.times)

    assert isinstance(outcome, Abandoned)
    assert outcome.reason == "retries_exhausted"
    assert outcome.elapsed <= 21.0
    assert last <= 20.1 + ROUNDING


async def test_failed_batch_holds_back_no_other(virtual_clock: CheckedLoop) -> None:
    """If one batch waits for its retry, other batches are sent."""
    transport = ScriptedTransport(503, then=OK)
    engine = Engine(transport, batching=ONE_EACH, retry=SLOW_RETRY)
    receipts = await engine.track_all(range(20))
    await asyncio.sleep(0.3)
    first, *others = [receipt.outcome for receipt in receipts]

    assert first is None
    assert all(isinstance(outcome, Delivered) for outcome in others)
