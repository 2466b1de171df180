"""Answers of 429 slow the client down: all requests pause, the pace falls in one step and recovers slowly."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import Batching, ConfigurationError, Delivered, LocalLimiter, RateLimit, RetryPolicy
from retailrocket_async._http.reply import Reply
from tests.contracts.limiter import worst_window
from tests.support.engine_state import paused_until
from tests.support.fakes import OK, ROUNDING, Engine, RecordingLimiter, Request, ScriptedTransport, Step, now, status
from tests.support.strategies import PROPERTY
from tests.support.virtual_time import CheckedLoop, VirtualTimeLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_EACH = Batching(max_events=1, linger=0.0, max_in_flight=8)
PATIENT = RetryPolicy(max_attempts=1000, max_elapsed=1e6)


def allowing(limit: int) -> Callable[[Request], Step | int]:
    """Return a server that accepts at most `limit` requests in any second and refuses further ones."""
    admitted: deque[float] = deque()

    def then(request: Request) -> Step | int:
        while admitted and admitted[0] <= request.at - 1.0:
            admitted.popleft()
        if len(admitted) >= limit:
            return 429
        admitted.append(request.at)
        return OK

    return then


async def flood(then: Any, seconds: float, **options: Any) -> ScriptedTransport:
    """Track 60 events a second, more than the limit allows, for `seconds`; return the transport."""
    transport = ScriptedTransport(then=then)
    options.setdefault("retry", PATIENT)
    engine = Engine(transport, batching=ONE_EACH, limiter=LocalLimiter(RateLimit()), **options)
    feeding = asyncio.create_task(engine.track_all(range(int(seconds * 60))))
    await asyncio.sleep(seconds)
    feeding.cancel()
    await engine.aclose(0)
    return transport


def refused(transport: ScriptedTransport, limit: int) -> int:
    """Return how many of these requests a server with this limit refuses."""
    server = allowing(limit)
    return sum(server(request) == 429 for request in transport.requests)


@pytest.mark.untraced
async def test_a_lower_limit_is_found(virtual_clock: CheckedLoop) -> None:
    """If a server allows 30 requests a second and 50 are configured, few are refused, and its limit is well used."""
    transport = await flood(allowing(30), 120.0)

    assert refused(transport, 30) <= 0.04 * len(transport.requests)
    assert len(transport.recorded) >= 0.65 * 30 * 120


@pytest.mark.untraced
@pytest.mark.parametrize("answer", [429, status(429, retry_after=0.0), status(429, retry_after=3.0)])
async def test_a_stream_of_429_never_raises_the_rate(virtual_clock: CheckedLoop, answer: Step | int) -> None:
    """If every answer is 429, the number of requests does not grow."""
    times = (await flood(answer, 120.0)).times
    by_half_minute = [sum(start <= at < start + 30.0 for at in times) for start in (0.0, 30.0, 60.0, 90.0)]

    assert by_half_minute[0] <= 30
    assert max(by_half_minute[1:]) <= by_half_minute[0]


async def test_one_incident_is_one_cut(virtual_clock: CheckedLoop) -> None:
    """If several 429 concern requests from before the pause's end, the pace falls to 0.7 once for all of them."""
    limiter = LocalLimiter(RateLimit())
    paces = []
    for _ in range(8):
        limiter.throttled(now())
        paces.append(limiter.pace(now()))
    await asyncio.sleep(1.5)
    limiter.throttled(now() - 1.0)
    paces.append(limiter.pace(now()))

    assert paces == [pytest.approx(0.7)] * 8 + [pytest.approx(0.71)]


async def test_the_pace_comes_back_by_two_hundredths_a_second(virtual_clock: CheckedLoop) -> None:
    """If a pause has begun with a 429, the pace grows by 2 % of the full one a second, and is full after 15 s."""
    limiter = LocalLimiter(RateLimit())
    limiter.throttled(now())
    paces = []
    for _ in range(4):
        await asyncio.sleep(5.0)
        paces.append(limiter.pace(now()))

    assert paces == [pytest.approx(pace, abs=1e-3) for pace in (0.78, 0.88, 0.98, 1.0)]


@given(st.lists(st.floats(0.0, 20.0), max_size=40))
@PROPERTY
def test_pauses_only_move_later(gaps: list[float]) -> None:
    """If pauses and 429s mix, the end of the pause never moves earlier, and the pace is at least a tenth."""

    async def test() -> None:
        limiter = LocalLimiter(RateLimit())
        for index, gap in enumerate(gaps):
            before = paused_until(limiter)
            limiter.throttled(now()) if index % 2 else limiter.pause_until(now() + gap)
            assert paused_until(limiter) >= before
            assert 0.1 <= limiter.pace(now()) <= 1.0
            await asyncio.sleep(gap)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(test())


async def test_nobody_recovers_in_a_pause(virtual_clock: CheckedLoop) -> None:
    """If `Retry-After` is long, the pace does not recover during the pause."""
    limiter = LocalLimiter(RateLimit())
    engine = Engine(ScriptedTransport(status(429, retry_after=30.0)), limiter=limiter, retry=PATIENT)

    assert isinstance(await (await engine.track(1)), Delivered)

    assert limiter.pace(now()) == pytest.approx(0.7, abs=0.02)


async def test_what_is_declared_as_throttling_is_not_divided(virtual_clock: CheckedLoop) -> None:
    """If a 400 counts as a 429, the batch is not divided, and an earlier attempt may still have been recorded."""
    retry = RetryPolicy(is_throttled=lambda *_: True, max_attempts=3, initial_backoff=0.0)
    transport = ScriptedTransport(Step(reply=Reply(failure="timeout"), recorded=True), then=400)
    engine = Engine(transport, limiter=RecordingLimiter(), retry=retry)
    receipts = await engine.track_all(range(4))
    outcomes = [await receipt for receipt in receipts]

    assert {(type(outcome).__name__, outcome.maybe_recorded) for outcome in outcomes} == {("Abandoned", True)}
    assert len(transport.requests) == 3


def test_the_slower_pace_is_kept() -> None:
    """If the pace is 0.7, no second has more than some 35 requests; if it is a tenth, no more than some 6."""

    async def test(incidents: int) -> int:
        limiter = LocalLimiter(RateLimit())
        for _ in range(incidents):
            limiter.throttled(now())
            await asyncio.sleep(paused_until(limiter) - now() + 0.01)
        times = []
        end = now() + 2.0
        while now() < end:
            permit = await limiter.acquire()
            assert permit is not None
            permit.sent()
            permit.done(answered=True)
            times.append(now())
        return worst_window(times, 1.0)

    assert 30 <= run(test(1)) <= 38
    assert 4 <= run(test(12)) <= 7


async def test_everyone_pauses(virtual_clock: CheckedLoop) -> None:
    """If one answer is 429 without `Retry-After`, batches and direct sends wait for a second."""
    transport = ScriptedTransport(429)
    retry = RetryPolicy(initial_backoff=0.0, max_backoff=0.0)
    engine = Engine(transport, batching=ONE_EACH, limiter=LocalLimiter(RateLimit()), retry=retry)
    await engine.track(1)
    await asyncio.sleep(0.1)
    await engine.track(2)
    send = asyncio.create_task(engine.send(3))
    await engine.flush()
    await send
    first, *others = transport.times

    assert len(others) == 3
    assert min(others) >= first + 1.0 + 0.05 - ROUNDING


@pytest.mark.parametrize("throttled", [403, 503])
async def test_what_counts_as_throttling_can_be_extended(virtual_clock: CheckedLoop, throttled: int) -> None:
    """If `is_throttled` returns True for a 403 or 503, the answer counts as a 429, and other answers do not."""

    def is_throttled(code: int, body: bytes) -> bool:
        return code == throttled and b"too fast" in body

    said = Reply(status=throttled, body=b"you are too fast")
    limiter = RecordingLimiter()
    retry = RetryPolicy(is_throttled=is_throttled, initial_backoff=0.0, max_halt=0.0)
    engine = Engine(ScriptedTransport(Step(reply=said)), limiter=limiter, retry=retry)
    outcome = await (await engine.track(1))

    assert isinstance(outcome, Delivered)
    assert not outcome.maybe_duplicate
    assert len(limiter.throttlings) == 1
    assert engine.stats().state == "sending"


@pytest.mark.parametrize("code", [200, 204, 299])
async def test_what_was_accepted_is_not_asked_about(virtual_clock: CheckedLoop, code: int) -> None:
    """If the answer is a 2xx, `is_throttled` is not called, and the event is delivered."""
    asked: list[int] = []

    def is_throttled(code: int, _: bytes) -> bool:
        asked.append(code)
        return True

    limiter = RecordingLimiter()
    said = Reply(status=code, body=b"you are too fast")
    engine = Engine(ScriptedTransport(Step(reply=said)), limiter=limiter, retry=RetryPolicy(is_throttled=is_throttled))

    assert await (await engine.track(1)) == Delivered(status=code, elapsed=pytest.approx(0.05))
    assert limiter.throttlings == []

    assert [] == asked


@pytest.mark.parametrize("code", [199, 300, 400, 413, 429, 599])
async def test_every_other_answer_is_asked_about(virtual_clock: CheckedLoop, code: int) -> None:
    """If an answer is no 2xx, `is_throttled` is called once for it, and may make it count as a 429."""
    asked: list[tuple[int, bytes]] = []

    def is_throttled(code: int, body: bytes) -> bool:
        asked.append((code, body))
        return True

    limiter = RecordingLimiter()
    retry = RetryPolicy(is_throttled=is_throttled, initial_backoff=0.0)
    engine = Engine(ScriptedTransport(Step(reply=Reply(status=code, body=b"x"))), limiter=limiter, retry=retry)
    outcome = await (await engine.track(1))

    assert isinstance(outcome, Delivered)
    assert (2, False, 1) == (outcome.attempts, outcome.maybe_duplicate, len(limiter.throttlings))

    assert [(code, b"x")] == asked


async def test_without_an_answer_nobody_is_asked(virtual_clock: CheckedLoop) -> None:
    """If a request gets no answer, `is_throttled` is not called."""
    asked: list[int] = []

    def is_throttled(code: int, _: bytes) -> bool:
        asked.append(code)
        return True

    retry = RetryPolicy(is_throttled=is_throttled, initial_backoff=0.0)
    engine = Engine(ScriptedTransport(Step(reply=Reply(failure="timeout"))), retry=retry)

    assert isinstance(await (await engine.track(1)), Delivered)

    assert [] == asked


async def test_a_predicate_that_raises_is_no_throttling(
    virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """If `is_throttled` raises, one record is logged, and the answer has its usual meaning."""

    def broken(code: int, body: bytes) -> bool:
        raise ZeroDivisionError

    retry = RetryPolicy(is_throttled=broken, initial_backoff=0.0)
    engine = Engine(ScriptedTransport(503, 503), retry=retry)
    outcome = await (await engine.track(1))

    assert isinstance(outcome, Delivered)
    assert outcome.maybe_duplicate

    assert sum("is_throttled raised ZeroDivisionError" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"is_throttled": 5},
        {"max_halt": -1},
        {"max_halt": float("inf")},
        {"at_most_once": "order"},
        {"at_most_once": 5},
        {"at_most_once": [5]},
        {"at_most_once": ["Order"]},
        {"at_most_once": ["add_to_basket"]},
        {"at_most_once": [""]},
        {"at_most_once": {"order": 1}},
        {"at_most_once": {"Order": True}},
    ],
)
def test_bad_policies_fail_at_construction(options: dict[str, Any]) -> None:
    """If a setting would have no effect, the policy is refused at construction, with the name of the setting."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RetryPolicy(**options)
