"""While the API is down, single probes go out, events stay in the buffer, and any answer of the API ends the outage."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import Abandoned, Batching, Buffer, Delivered, DeliveryError, RateLimit, RetryPolicy
from retailrocket_async._delivery.circuit_breaker import FAILURES, CircuitBreaker
from retailrocket_async._delivery.rate_limiter import LocalLimiter
from retailrocket_async._http.reply import Reply
from tests.contracts.limiter import worst_window
from tests.delivery.test_circuit_breaker_halted import listening
from tests.support.engine_state import scheduled_timers
from tests.support.fakes import (
    NO_CONNECTION,
    OK,
    ROUNDING,
    TIMED_OUT,
    Engine,
    Request,
    ScriptedTransport,
    Step,
    now,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from retailrocket_async import StateChange, UndeliveredEvent

DOWN = {
    "refused": NO_CONNECTION,
    "503": Step(reply=Reply(status=503)),
    "500": Step(reply=Reply(status=500)),
    "501": Step(reply=Reply(status=501)),
    "no answer": Step(reply=TIMED_OUT.reply, latency=2.0),
    "broken": Step(reply=Reply(failure="broken", detail="ReadError")),
}
# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1, linger=0.0, max_in_flight=8)


def until(moment: float, step: Step) -> Any:
    """Return a server that fails like `step` until `moment`."""

    def then(request: Request) -> Step:
        return step if request.at < moment else OK

    return then


@pytest.mark.untraced
@pytest.mark.parametrize("how", DOWN)
async def test_requests_decay(virtual_clock: CheckedLoop, how: str) -> None:
    """If the API goes down, only single probes go out after a few failures: at most 20 in five minutes."""
    transport = ScriptedTransport(then=DOWN[how])
    engine = Engine(transport, batching=ONE_EACH, buffer=Buffer(max_events=1000))
    await engine.track_all(range(500))
    sends = [asyncio.create_task(engine.send(number)) for number in range(100)]
    await asyncio.sleep(300.0)
    times = list(transport.times)
    assert engine.stats().state == "down"
    await engine.aclose(0)
    await asyncio.gather(*sends, return_exceptions=True)

    first_probe = next(index for index, at in enumerate(times) if index >= FAILURES and at - times[index - 1] > 0.2)
    assert first_probe <= FAILURES + 8
    assert len(times) - first_probe <= 20
    waits = [after - before for before, after in itertools.pairwise(times[first_probe:])]

    assert max(waits) > 14.0


async def test_never_fifty_failing_requests_a_second(virtual_clock: CheckedLoop) -> None:
    """If the API is down, at most a few requests fail in any second, however many events wait."""
    transport = ScriptedTransport(then=Step(reply=Reply(status=503), latency=0.01))
    limiter = LocalLimiter(RateLimit())
    engine = Engine(transport, batching=ONE_EACH, limiter=limiter, buffer=Buffer(max_events=10_000))
    await engine.track_all(range(2000))
    sends = [asyncio.create_task(engine.send(number)) for number in range(200)]
    await asyncio.sleep(60.0)
    times = list(transport.times)
    await engine.aclose(0)
    await asyncio.gather(*sends, return_exceptions=True)

    assert worst_window(times, 1.0) <= FAILURES + 8 + 2


@pytest.mark.untraced
@pytest.mark.parametrize("how", DOWN)
async def test_full_speed_within_two_seconds(virtual_clock: CheckedLoop, how: str) -> None:
    """If a request succeeds after an outage, batches, retries and direct sends go out at the full rate limit."""
    transport = ScriptedTransport(then=until(20.0, DOWN[how]))
    limiter = LocalLimiter(RateLimit())
    retry = RetryPolicy(max_elapsed=1e4, max_attempts=1000)
    engine = Engine(transport, batching=ONE_EACH, limiter=limiter, retry=retry, buffer=Buffer(max_events=1000))
    receipts = await engine.track_all(range(500))
    await asyncio.sleep(20.0)
    first = await first_success(transport)
    await asyncio.sleep(2.0)
    before = len([at for at in transport.times if first < at <= first + 2.0])
    assert before >= 80
    for receipt in receipts:
        if how != "501":
            assert isinstance(await receipt, Delivered)

    assert max(transport.recorded.count(each) for each in set(transport.recorded)) == 1


async def first_success(transport: ScriptedTransport) -> float:
    """Wait until the first event is recorded, and return the time."""
    arrived = asyncio.Event()
    transport.checks.append(lambda: arrived.set() if transport.recorded else None)
    await arrived.wait()
    return now()


async def test_memory_stays_bounded(virtual_clock: CheckedLoop) -> None:
    """If the API is down, the buffer stays within its bounds, callers wait, and no event is lost."""
    transport = ScriptedTransport(then=until(100.0, NO_CONNECTION))
    engine = Engine(transport, batching=Batching(max_events=10, max_in_flight=8), buffer=Buffer(max_events=200))
    tracking = asyncio.create_task(engine.track_all(range(2000)))
    await asyncio.sleep(90.0)
    stats = engine.stats()
    assert (stats.pending, stats.waiting, tracking.done()) == (200, 1, False)
    assert stats.in_flight <= 80
    receipts = await tracking
    for receipt in receipts:
        assert isinstance(await receipt, Delivered)

    assert sorted(transport.recorded_numbers) == list(range(2000))


async def test_the_story_is_told_once(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If the API goes down and recovers, each change has exactly one log record and one hook call."""
    changes: list[StateChange] = []

    transport = ScriptedTransport(then=until(30.0, NO_CONNECTION))
    engine = Engine(transport, batching=ONE_EACH, on_state_change=listening(changes))
    await engine.track_all(range(100))
    await engine.flush()
    assert engine.stats().state == "sending"

    assert [(change.previous, change.state) for change in changes] == [("sending", "down"), ("down", "sending")]
    assert changes[0].failure == "connect: ConnectError"
    reported = [record.getMessage() for record in caplog.records if record.name == "retailrocket_async"]

    assert ["down" in reported[0], "sending again" in reported[1], len(reported)] == [True, True, 2]


async def test_down_for_longer_than_the_retries(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If an outage exceeds the retry limits, the tried batches are abandoned, and the hook gets all of their events."""
    reported: list[UndeliveredEvent] = []

    async def hook(events: Any) -> None:
        reported.extend(events)

    transport = ScriptedTransport(then=NO_CONNECTION)
    retry = RetryPolicy(max_elapsed=60.0)
    engine = Engine(transport, batching=ONE_EACH, retry=retry, on_outcome=hook)
    receipts = await engine.track_all(range(50))
    await asyncio.sleep(70.0)
    stats = engine.stats()
    assert stats.abandoned >= 8
    report = await engine.aclose(5.0)
    await turns(5)
    assert report.stats.abandoned + report.stats.dropped == 50 == len(reported)
    assert all(receipt.outcome is not None for receipt in receipts)
    abandoned = [kept.outcome for kept in reported if isinstance(kept.outcome, Abandoned)]

    assert not any(outcome.maybe_recorded for outcome in abandoned)
    assert tasks() == set()


async def test_a_direct_send_gives_up_in_time(virtual_clock: CheckedLoop) -> None:
    """If a direct send waits while the API is down, it fails when its retry policy's time is over."""
    engine = Engine(ScriptedTransport(then=NO_CONNECTION), retry=RetryPolicy(max_elapsed=10.0))
    sends = [asyncio.create_task(engine.send(number)) for number in range(50)]
    done = await asyncio.gather(*sends, return_exceptions=True)

    assert all(isinstance(error, DeliveryError) for error in done)
    assert now() <= 11.0


async def test_a_close_probes_at_once_and_often(virtual_clock: CheckedLoop) -> None:
    """If the API recovered after a long outage, a close probes at once and does not wait for the next planned probe."""
    transport = ScriptedTransport(then=until(100.0, NO_CONNECTION))
    engine = Engine(transport, batching=Batching(max_events=10))
    await engine.track_all(range(100))
    await asyncio.sleep(101.0)
    begin = now()
    report = await engine.aclose(5.0)

    assert report.clean
    assert now() - begin < 1.5


async def test_a_close_probes_every_half_second(virtual_clock: CheckedLoop) -> None:
    """If a client closes while the API is down, it probes every half second, whatever its interval was before."""
    transport = ScriptedTransport(then=NO_CONNECTION)
    retry = RetryPolicy(max_elapsed=1e6, max_attempts=10**6)
    engine = Engine(transport, batching=Batching(max_events=10), retry=retry)
    await engine.track_all(range(100))
    await asyncio.sleep(200.0)
    begin = now()
    await engine.aclose(10.0)
    times = [begin, *(at for at in transport.times if at >= begin)]

    assert times[1] - times[0] <= ROUNDING
    gaps = [after - before for before, after in itertools.pairwise(times[1:])]

    assert [pytest.approx(0.55, abs=0.001)] * len(gaps) == gaps
    assert len(gaps) >= 16


async def test_one_batch_that_always_fails_holds_back_no_other(virtual_clock: CheckedLoop) -> None:
    """If one batch always makes the API fail, all others are delivered: their success shows that the API is up."""

    def then(request: Request) -> Step | int:
        return 500 if 3 in request.numbers else OK

    engine = Engine(ScriptedTransport(then=then), batching=ONE_EACH, retry=RetryPolicy(max_attempts=10))
    receipts = await engine.track_all(range(100))
    await asyncio.sleep(5.0)

    assert sum(isinstance(receipt.outcome, Delivered) for receipt in receipts) == 99
    assert isinstance(await receipts[3], Abandoned)


# --- the breaker alone ---


def breaker(policy: RetryPolicy = RetryPolicy()) -> CircuitBreaker:  # noqa: B008 - frozen
    """Return a circuit breaker."""
    return CircuitBreaker(policy)


def bring(it: CircuitBreaker, *replies: Reply, halts: bool = False) -> list[StateChange]:
    """Make one request for each of these replies, which the breaker must admit now; return the changes of state."""
    changes: list[StateChange | None] = []
    for reply in replies:
        admission = it.admit(now())
        assert admission is not None
        changes.append(it.report(admission, reply, now(), halts=halts))
    return [change for change in changes if change is not None]


FAILED = [Reply(status=503)] * FAILURES


@pytest.mark.parametrize("state", ["halted", "down"])
@pytest.mark.parametrize("early", [False, True])
async def test_a_hurried_breaker_admits_a_probe_each_half_second(
    virtual_clock: CheckedLoop,
    state: str,
    early: bool,  # noqa: FBT001
) -> None:
    """If a breaker is hurried, before or after it trips, it admits a probe at once and then one every 0.5 s."""
    it = breaker(RetryPolicy(initial_backoff=30.0, max_backoff=30.0))
    brought = [Reply(status=403)] if state == "halted" else FAILED
    if early:
        it.hurry(now())
    bring(it, *brought, halts=True)
    assert it.state == state
    if not early:
        for _ in range(6):
            await asyncio.sleep(60.0)
            bring(it, brought[0], halts=True)
        it.hurry(now())
        bring(it, brought[0], halts=True)
    for _ in range(5):
        await asyncio.sleep(0.49)
        assert it.admit(now()) is None
        await asyncio.sleep(0.02)
        bring(it, brought[0], halts=True)


@pytest.mark.parametrize("brought", [Reply(status=503), Reply(status=403)])
async def test_only_what_is_let_through_to_see_is_a_probe(virtual_clock: CheckedLoop, brought: Reply) -> None:
    """If the client is down or halted, requests are admitted one at a time, as probes; otherwise all are admitted."""
    it = breaker()
    before = [it.admit(now()) for _ in range(3)]
    bring(it, *[brought] * (FAILURES if brought.status == 503 else 1), halts=True)
    assert it.admit(now()) is None
    await asyncio.sleep(1.0)
    probe = it.admit(now())
    assert it.admit(now()) is None
    assert probe is not None
    assert [False, False, False, True] == [each is not None and each.probe for each in [*before, probe]]
    assert [False, True] == [each is not None and it.still_admits(each) for each in (before[0], probe)]
    it.report(probe, Reply(status=200), now(), halts=True)
    after = [it.admit(now()) for _ in range(3)]

    assert [(False, True)] * 3 == [(each.probe, it.still_admits(each)) for each in after if each is not None]


async def intervals(it: CircuitBreaker, brought: Reply, count: int) -> list[float]:
    """Return the seconds from the state's beginning to each of `count` probes; each probe gets the reply `brought`."""
    waits = []
    for _ in range(count):
        begin = now()
        await asyncio.wait_for(it.wait(), 1e6)
        waits.append(now() - begin)
        bring(it, brought, halts=True)
    return waits


@pytest.mark.parametrize(("first", "last"), [(1.0, 16.0), (0.0, 0.0), (0.05, 0.3), (2.0, 2.0)])
def test_probes_of_an_outage_follow_the_policy(first: float, last: float) -> None:
    """While the API is down, the interval between probes doubles up to `max_backoff`, less a random part up to a half.

    The interval is never shorter than 0.05 s, whatever the policy says.
    """

    async def test() -> list[float]:
        it = breaker(RetryPolicy(initial_backoff=first, max_backoff=last))
        bring(it, *FAILED)
        return await intervals(it, Reply(status=503), 8)

    longest = [max(0.1, min(max(0.1, last), max(0.1, first) * 2**index)) for index in range(8)]
    # Many values are near the ends of the range, so both ends are tested.
    waits = [[wait / most for wait, most in zip(run(test()), longest, strict=True)] for _ in range(12)]
    flat = [wait for each in waits for wait in each]

    assert 0.5 - ROUNDING <= min(flat) < 0.65
    assert 0.85 < max(flat) <= 1.0 + ROUNDING


@pytest.mark.parametrize("policy", [RetryPolicy(), RetryPolicy(initial_backoff=0.0, max_backoff=0.0)])
async def test_probes_of_a_halt_follow_no_policy(virtual_clock: CheckedLoop, policy: RetryPolicy) -> None:
    """If sending is halted, the interval between probes doubles from 1 s to 30 s, and restarts in the next halt."""
    it = breaker(policy)
    for _ in range(2):
        bring(it, Reply(status=403), halts=True)
        expected = [pytest.approx(wait, abs=ROUNDING) for wait in (1, 2, 4, 8, 16, 30, 30)]
        assert expected == await intervals(it, Reply(status=403), 7)
        await it.wait()
        bring(it, Reply(status=200))
        assert it.state == "sending"


async def test_what_a_breaker_says_of_a_change(virtual_clock: CheckedLoop) -> None:
    """If the state changes, the report has both states, duration, cause and advice; repeats are not reported."""
    changes: list[StateChange] = []

    it = breaker()
    await asyncio.sleep(1.0)
    changes += bring(it, Reply(status=200), *[Reply(failure="connect", detail="ConnectError")] * FAILURES)
    assert (1.0, 1.0) == (pytest.approx(it.answered_at), pytest.approx(it.since))
    await asyncio.sleep(10.0)
    changes += bring(it, Reply(status=403), halts=True)
    assert 403 == it.status
    await asyncio.sleep(10.0)
    changes += bring(it, Reply(status=403), halts=True)
    await asyncio.sleep(10.0)
    changes += bring(it, Reply(status=404), halts=True)
    refused_at, since = it.refused_at, it.since
    assert 404 == it.status
    await asyncio.sleep(10.0)
    changes += bring(it, Reply(status=200))
    assert it.status is None
    changes += bring(it, *[Reply(failure="key", detail="KeyError")] * FAILURES)
    await asyncio.sleep(40.0)
    changes += bring(it, Reply(status=400))
    changes += bring(it, *FAILED)
    times = refused_at, since, it.answered_at

    # The status of the last refusal; the time of the first, since which sending is halted; the time of the last answer.
    assert [pytest.approx(at) for at in (31.0, 11.0, 81.0)] == list(times)
    reported = [
        (change.previous, change.state, change.status, change.failure, round(change.lasted)) for change in changes
    ]

    assert [
        ("sending", "down", None, "connect: ConnectError", 0),
        ("down", "halted", 403, None, 10),
        ("halted", "halted", 404, None, 20),
        ("halted", "sending", None, None, 30),
        ("sending", "down", None, "key: KeyError", 0),
        ("down", "sending", None, None, 40),
        ("sending", "down", 503, None, 0),
    ] == reported
    assert ["does not answer", "does not answer"] == [changes[index].advice[8:23] for index in (0, 6)]
    assert "api_key function" in changes[4].advice


@pytest.mark.parametrize("answer", [200, 400, 413, 429])
async def test_which_answers_end_an_outage(virtual_clock: CheckedLoop, answer: int) -> None:
    """If the API gives any answer, even a refusal of events or a 429, the state `down` ends."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    bring(it, *FAILED)
    await asyncio.sleep(1.0)
    bring(it, Reply(status=answer))

    assert it.state == "sending"


@pytest.mark.parametrize(
    ("brought", "conclusive", "state"),
    [
        (Reply(status=200), True, "sending"),
        (Reply(status=400), True, "sending"),
        (Reply(status=200), False, "halted"),
        (Reply(status=429), True, "halted"),
        (Reply(status=503), True, "halted"),
        (Reply(status=501), True, "halted"),
        (Reply(failure="timeout"), True, "halted"),
    ],
)
async def test_which_answers_end_a_halt(
    virtual_clock: CheckedLoop,
    brought: Reply,
    conclusive: bool,  # noqa: FBT001
    state: str,
) -> None:
    """If an answer shows that key and address are right, the halt ends; after any other answer, probes continue."""
    it = breaker()
    bring(it, Reply(status=403), halts=True)
    await asyncio.sleep(1.0)
    admission = it.admit(now())
    assert admission is not None
    it.report(admission, brought, now(), halts=True, conclusive=conclusive)
    assert it.state == state
    if state == "halted":
        assert it.admit(now()) is None
        await asyncio.sleep(2.0)
        assert it.admit(now()) is not None


async def test_a_refusal_that_halts_nobody_is_an_answer(virtual_clock: CheckedLoop) -> None:
    """If an event's own endpoint refuses the event, nothing halts, outages end, and the failure count restarts."""
    it = breaker()
    bring(it, *FAILED[:-1], Reply(status=404), *FAILED[:-1])
    assert it.state == "sending"
    bring(it, Reply(status=503))

    assert it.state == "down"


async def test_rests_end_with_the_state(virtual_clock: CheckedLoop) -> None:
    """If the state changes, a wait between attempts ends early; outside the state `sending` the wait is skipped."""
    it = breaker()
    ended: list[float] = []

    async def rest(seconds: float) -> None:
        await it.rest(now() + seconds)
        ended.append(now())

    resting = [asyncio.create_task(rest(seconds)) for seconds in (1.0, 5.0, 50.0)]
    await asyncio.sleep(2.0)
    resting[1].cancel()
    bring(it, *FAILED)
    await asyncio.wait(resting)
    await rest(50.0)

    assert [pytest.approx(at, abs=ROUNDING) for at in (1.0, 2.0, 2.0)] == ended


async def test_a_probe_that_is_held_keeps_others_waiting(virtual_clock: CheckedLoop) -> None:
    """If a probe's flight makes another request at once, no other probe is admitted meanwhile."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    early = it.admit(now())
    assert early is not None
    bring(it, *FAILED)
    await asyncio.sleep(1.0)
    it.hold(early)
    probe = it.admit(now())
    assert probe is not None
    it.over(early)
    assert it.admit(now()) is None
    waiting = asyncio.create_task(it.wait())
    it.over(probe)
    it.hold(probe)
    await asyncio.sleep(10.0)
    assert (None, False) == (it.admit(now()), waiting.done())
    it.over(probe)
    await waiting

    assert it.admit(now()) is not None


async def test_what_is_older_than_the_state_frees_and_holds_no_probe(virtual_clock: CheckedLoop) -> None:
    """If a request of an earlier state ends or is repeated, the present state still admits exactly one probe."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    bring(it, *FAILED)
    await asyncio.sleep(1.0)
    older = it.admit(now())
    assert older is not None
    it.report(older, Reply(status=403), now(), halts=True)
    await asyncio.sleep(1.0)
    it.hold(older)
    probe = it.admit(now())
    assert probe is not None
    it.over(older)
    assert it.admit(now()) is None
    it.over(probe)

    assert it.admit(now()) is not None


@pytest.mark.parametrize("passed", range(6))
async def test_a_waiter_that_is_cancelled_as_it_is_woken_wakes_the_next(
    virtual_clock: CheckedLoop, passed: int
) -> None:
    """If a waiter is cancelled, in any turn of the loop, the next waiter is woken instead."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    bring(it, *FAILED)
    waiting = [asyncio.create_task(it.wait()) for _ in range(2)]
    await asyncio.sleep(0.1)
    it.probe_now(now())
    await turns(passed)
    waiting[0].cancel()
    await asyncio.sleep(0.1)
    # In the last turns the first waiter had already been woken, and the cancellation came too late.
    assert waiting[0].cancelled() == waiting[1].done()
    waiting[1].cancel()


async def test_one_is_woken_for_one_probe(virtual_clock: CheckedLoop) -> None:
    """If waiters are cancelled and probes end, the remaining waiters are woken one at a time and in order."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    bring(it, *FAILED)
    woken: list[int] = []

    async def wait(number: int) -> None:
        await it.wait()
        woken.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(10)]
    await asyncio.sleep(0.1)
    for victim in (3, 5, 7):
        waiting[victim].cancel()
        await turns()
    for _ in range(3):
        it.nudge()
    await asyncio.sleep(5.0)
    assert woken == [0]
    it.nudge()
    it.nudge()
    await asyncio.sleep(0.1)
    assert woken == [0, 1]
    for task in waiting:
        task.cancel()


async def test_another_refusal_wakes_nobody(virtual_clock: CheckedLoop) -> None:
    """If a halted client is refused for another cause, waiters stay asleep; they wake when the next probe is due."""
    it = breaker()
    bring(it, Reply(status=403), halts=True)
    await asyncio.sleep(1.0)
    probe = it.admit(now())
    assert probe is not None
    waiting = asyncio.create_task(it.wait())
    await turns()
    it.report(probe, Reply(status=404), now(), halts=True)
    await asyncio.sleep(1.9)
    assert not waiting.done()
    await asyncio.sleep(0.2)

    assert waiting.done()


def left_behind() -> tuple[int, int]:
    """Return how many futures are alive, and how many timers the running loop will call."""
    gc.collect()
    scheduled = scheduled_timers()
    futures = sum(isinstance(each, asyncio.Future) for each in gc.get_objects())
    return futures, sum(not timer.cancelled() for timer in scheduled)


async def test_waits_and_rests_leave_nothing_behind(virtual_clock: CheckedLoop) -> None:
    """If waits are cancelled, or end early because the state changes, neither a future nor a timer stays in memory."""
    it = breaker(RetryPolicy(initial_backoff=1e6, max_backoff=1e6))
    before = left_behind()
    resting = [asyncio.create_task(it.rest(1e6)) for _ in range(20)]
    await turns()
    for task in resting[:10]:
        task.cancel()
    bring(it, *FAILED)
    await asyncio.wait(resting)
    waiting = [asyncio.create_task(it.wait()) for _ in range(20)]
    await turns()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    del resting, waiting, task
    it.nudge()
    # The loop itself references the handle that woke this task until the next turn.
    await turns()
    futures, timers = left_behind()
    assert (True, before[1]) == (futures <= before[0], timers)
    # The only timer is the waiter's.
    waiter = asyncio.create_task(it.wait())
    await turns()
    assert before[1] + 1 == left_behind()[1]
    waiter.cancel()
    await turns()

    assert before[1] == left_behind()[1]


@pytest.mark.parametrize("outlast", [False, True])
def test_the_time_that_counts_for_retries(outlast: bool) -> None:  # noqa: FBT001
    """Time since a failure counts, except time halted and, if the policy outlasts outages, time spent down.

    After a time that does not count, counting restarts at zero.
    """

    async def test() -> list[float]:
        it = breaker(RetryPolicy(initial_backoff=0.1, max_backoff=0.1, outlast=outlast))
        counted: list[float] = []

        def count() -> None:
            counted.extend(now() - it.counted_from(moment, now()) for moment in (5.0, 1000.0))

        await asyncio.sleep(10.0)
        bring(it, *FAILED)
        await asyncio.sleep(10.0)
        count()
        bring(it, Reply(status=200))
        await asyncio.sleep(10.0)
        count()
        bring(it, Reply(status=403), halts=True)
        await asyncio.sleep(10.0)
        count()
        bring(it, Reply(status=200))
        await asyncio.sleep(10.0)
        count()
        return counted

    later = [20.0 - 1000.0, 30.0 - 1000.0, 0.0, 50.0 - 1000.0]
    expected = [0.0, 10.0, 0.0, 10.0] if outlast else [15.0, 25.0, 0.0, 10.0]
    if outlast:
        later[0] = 0.0

    assert [each for pair in zip(expected, later, strict=True) for each in pair] == [
        pytest.approx(seconds, abs=ROUNDING) for seconds in run(test())
    ]


async def test_a_halt_that_becomes_an_outage_counts_from_then(virtual_clock: CheckedLoop) -> None:
    """If a halted client is answered, it sends again; time spent halted never counts, whatever state follows."""
    it = breaker(RetryPolicy(initial_backoff=0.1, max_backoff=0.1))
    bring(it, Reply(status=403), halts=True)
    await asyncio.sleep(50.0)
    bring(it, Reply(status=503))
    assert it.state == "halted"
    assert it.counted_from(1.0, now()) == now()
    await asyncio.sleep(50.0)
    bring(it, Reply(status=404), halts=True)
    await asyncio.sleep(50.0)
    assert it.counted_from(1.0, now()) == now()
    bring(it, Reply(status=200))
    await asyncio.sleep(5.0)

    assert now() - it.counted_from(1.0, now()) == pytest.approx(5.0, abs=ROUNDING)


async def test_late_failures_do_not_reopen(virtual_clock: CheckedLoop) -> None:
    """If requests that were started before the recovery fail after it, the state stays `sending`."""
    it = breaker()
    late = [it.admit(now()) for _ in range(20)]
    for admission in late[:FAILURES]:
        assert admission is not None
        it.report(admission, Reply(status=503), now(), halts=False)
    assert it.state == "down"
    await asyncio.sleep(1.0)
    probe = it.admit(now())
    assert probe is not None
    assert probe.probe
    it.report(probe, Reply(status=200), now(), halts=False)
    for admission in late[FAILURES:]:
        assert admission is not None
        it.report(admission, Reply(failure="timeout"), now(), halts=False)

    assert it.state == "sending"


async def test_a_success_between_failures_is_no_outage(virtual_clock: CheckedLoop) -> None:
    """If one request in five succeeds, the count of failures in a row restarts, and the state stays `sending`."""
    it = breaker()
    for index in range(100):
        admission = it.admit(now())
        assert admission is not None
        it.report(admission, Reply(status=200 if index % FAILURES == 0 else 503), now(), halts=False)

    assert it.state == "sending"


async def test_a_probe_that_is_cut_off_lets_the_next_one_go(virtual_clock: CheckedLoop) -> None:
    """If a probe ends without an answer, the breaker admits another probe."""
    it = breaker(RetryPolicy(initial_backoff=0.1, max_backoff=0.1))
    for _ in range(FAILURES):
        admission = it.admit(now())
        assert admission is not None
        it.report(admission, Reply(failure="connect"), now(), halts=False)
    await asyncio.sleep(0.2)
    probe = it.admit(now())
    assert probe is not None
    assert it.admit(now()) is None
    it.over(probe)

    assert it.admit(now()) is not None


async def test_who_waits_is_served_in_order(virtual_clock: CheckedLoop) -> None:
    """If the API is down, the waiter that waited longest gets the probe; after the recovery all waiters send."""
    it = breaker(RetryPolicy(initial_backoff=1.0, max_backoff=1.0))
    for _ in range(FAILURES):
        admission = it.admit(now())
        assert admission is not None
        it.report(admission, Reply(failure="connect"), now(), halts=False)
    woken: list[int] = []

    async def wait(number: int) -> None:
        await it.wait()
        woken.append(number)
        admission = it.admit(now())
        assert admission is not None
        if number < 3:
            it.report(admission, Reply(failure="connect"), now(), halts=False)
        else:
            it.report(admission, Reply(status=200), now(), halts=False)

    waiting = [asyncio.create_task(wait(number)) for number in range(10)]
    await asyncio.sleep(0.1)
    waiting[1].cancel()
    await asyncio.sleep(10.0)

    assert woken == [0, 2, 3, 4, 5, 6, 7, 8, 9]
