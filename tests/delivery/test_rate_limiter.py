"""The request limit on a virtual clock, as a server counts requests behind a network with uneven delays."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.rate_limiter import MAX_PAUSE, Limiter, LocalLimiter, Permit, RateLimit
from retailrocket_async._errors import ConfigurationError, WrongLoopError
from tests.contracts.limiter import ROUNDING, LimiterContract, now, take, worst_window
from tests.support.virtual_time import CheckedLoop, VirtualTimeLoop, block, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

NOMINAL = RateLimit()


class TestLocalLimiter(LimiterContract):
    """Run the contract's tests against `LocalLimiter`."""

    def make(self, rate_limit: RateLimit) -> Limiter:
        """Return a new `LocalLimiter`."""
        return LocalLimiter(rate_limit)


# --- requests as the server counts them ---


@attrs.frozen
class Way:
    """The delays of one request between its grant and its end, in seconds."""

    connecting: float = 0.0
    """From the grant to the write, while other tasks run."""
    blocked: float = 0.0
    """From the grant to the write, while the loop is blocked."""
    network: float = 0.0
    """From the write to the arrival, in addition to `SHORTEST`."""
    answer: float | None = 0.0
    """From the arrival to the end of the answer; None if the request is cancelled right after it was written."""


SHORTEST = 0.03
"""The least delay of the network in seconds; the limiter does not need to know this value."""


async def demand(limiter: Limiter, ways: Iterable[Way], *, senders: int = 8, seconds: float = math.inf) -> list[float]:
    """Make requests with these delays, as fast as the limiter allows; return when they arrive at the server."""
    arrivals: list[float] = []
    left = iter(ways)
    end = now() + seconds

    async def sender() -> None:
        while now() < end:
            permit = await limiter.acquire()
            way = next(left, None)
            if way is None:
                if permit is not None:
                    permit.done()
                return
            await asyncio.sleep(way.connecting)
            block(way.blocked)
            arrival = now() + SHORTEST + way.network
            arrivals.append(arrival)
            if permit is not None:
                permit.sent()
            if way.answer is not None:
                await asyncio.sleep(arrival + way.answer - now())
            if permit is not None:
                permit.done(answered=way.answer is not None)

    await asyncio.gather(*(sender() for _ in range(senders)))
    return arrivals


@st.composite
def limits_and_ways(draw: st.DrawFn) -> tuple[RateLimit, list[Way]]:
    """Draw a limit, and requests whose delays differ by no more than the limit's jitter."""
    requests = draw(st.integers(1, 12))
    limit = RateLimit(
        requests=requests,
        burst=draw(st.integers(1, requests)),
        jitter=draw(st.sampled_from([0.0, 0.025, 0.2])),
    )
    way = st.builds(
        Way,
        connecting=st.sampled_from([0.0, 0.001, 0.03, 0.5, 1.5]),
        blocked=st.sampled_from([0.0, 0.0, 0.005, 0.3]),
        network=st.sampled_from([0.0, limit.jitter / 2, limit.jitter]),
        answer=st.sampled_from([0.0, 0.001, 0.1, 1.2, None]),
    )
    return limit, draw(st.lists(way, min_size=5, max_size=60))


@settings(deadline=None)
@given(limits_and_ways())
@example((RateLimit(requests=3, burst=3), [Way(network=0.025)] * 3 + [Way()] * 9))
@example((RateLimit(requests=3, burst=3), [Way(network=0.025, answer=None)] * 3 + [Way()] * 9))
@example((RateLimit(requests=3, burst=3), [Way(connecting=0.5)] * 3 + [Way()] * 9))
@example((RateLimit(requests=3, burst=3), [Way(blocked=0.3)] * 3 + [Way()] * 9))
def test_no_window_is_overfull(limit_and_ways: tuple[RateLimit, list[Way]]) -> None:
    """If the network's delays differ by no more than `jitter`, no window of arrivals exceeds the limit."""
    limit, ways = limit_and_ways
    arrivals = run(demand(LocalLimiter(limit), ways))

    assert len(ways) == len(arrivals)
    assert worst_window(arrivals, limit.per) <= limit.requests


def uneven_network(*, spread: float = 0.02, answer: float = 0.0) -> Iterable[Way]:
    """Yield the delays of requests without end, for a client and a network with ordinary delays."""
    chance = random.Random(0)
    while True:
        yield Way(connecting=chance.uniform(0.0, 0.002), network=chance.uniform(0.0, spread), answer=answer)


async def blocking() -> None:
    """Block the loop for 5 ms at a time, half of the time."""
    while True:
        block(0.005)
        await asyncio.sleep(0.005)


async def steady_demand(ways: Iterable[Way], *, blocked: bool) -> list[float]:
    """Make as many requests as the limiter allows for 30 s of the loop's time; return the sorted arrival times."""
    other_work = asyncio.create_task(blocking()) if blocked else None
    arrivals = await demand(LocalLimiter(NOMINAL), ways, seconds=30.0)
    if other_work is not None:
        other_work.cancel()
    return sorted(arrivals)


@pytest.mark.untraced
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.02])
@pytest.mark.parametrize(("answer", "wanted"), [(0.0, 0.97), (0.07, 0.95)])
async def test_the_limit_is_used(
    virtual_clock: CheckedLoop,
    answer: float,
    wanted: float,
    spread: float,
    blocked: bool,  # noqa: FBT001
) -> None:
    """If requests always wait, 97 % of the limit is used (95 % if an answer takes 0.1 s), and never more than 100 %."""
    arrivals = await steady_demand(uneven_network(spread=spread, answer=answer), blocked=blocked)
    steady = [at for at in arrivals if 1.0 <= at < 29.0]

    assert len(steady) / 28.0 >= wanted * NOMINAL.requests
    assert worst_window(arrivals, NOMINAL.per) <= NOMINAL.requests


def test_quiet_moments_are_not_saved_up() -> None:
    """If no request was made for an hour, at most `burst` requests are granted together."""

    async def test() -> list[float]:
        limiter = LocalLimiter(NOMINAL)
        await take(limiter)
        await asyncio.sleep(3600.0)
        begin = now()
        return [at - begin for at in await asyncio.gather(*(take(limiter) for _ in range(20)))]

    assert sum(at < ROUNDING for at in run(test())) == NOMINAL.burst


async def test_two_clients_share_one_limit(virtual_clock: CheckedLoop) -> None:
    """If two clients share a limiter, the sum of their requests stays within the limit, and each gets half."""
    limiter = LocalLimiter(NOMINAL)
    one, other = await asyncio.gather(
        demand(limiter, uneven_network(), seconds=10.0), demand(limiter, uneven_network(), seconds=10.0)
    )

    assert worst_window(one + other, NOMINAL.per) <= NOMINAL.requests
    assert abs(len(one) - len(other)) <= 0.1 * len(one)


# --- the time of a slot ---


async def when_free(tell: Callable[[Permit], Coroutine[None, None, None]], limit: RateLimit) -> float:
    """Return when a limiter with one slot grants the second request; `tell` reports the first one's progress."""
    limiter = LocalLimiter(limit)
    permit = await limiter.acquire()
    assert permit is not None
    telling = asyncio.create_task(tell(permit))
    granted = await take(limiter)
    await telling
    return granted


ONE = RateLimit(requests=1, per=1.0, jitter=0.1)


async def test_unsent_request_keeps_its_slot(virtual_clock: CheckedLoop) -> None:
    """If a request is not yet written, its slot stays taken, until `per + jitter` after the writing."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(1000.0)
        permit.sent()

    assert await when_free(tell, ONE) == pytest.approx(1000.0 + 1.1)


async def test_written_request_frees_its_slot(virtual_clock: CheckedLoop) -> None:
    """If no early answer comes, the slot is free `per + jitter` after the request was written."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(0.5)
        permit.sent()
        await asyncio.sleep(0.3)
        permit.done(answered=True)

    assert await when_free(tell, ONE) == pytest.approx(0.5 + 1.1)


async def test_prompt_answer_frees_the_slot_sooner(virtual_clock: CheckedLoop) -> None:
    """If an answer comes early, it proves that the request arrived, so the slot is free `per` after the answer."""

    async def tell(permit: Permit) -> None:
        permit.sent()
        await asyncio.sleep(0.02)
        permit.done(answered=True)

    assert await when_free(tell, ONE) == pytest.approx(0.02 + 1.0)


async def test_cancelled_request_frees_its_slot_no_sooner(virtual_clock: CheckedLoop) -> None:
    """If a written request is cancelled, it may still arrive, so its slot is free `per + jitter` after the writing."""

    async def tell(permit: Permit) -> None:
        permit.sent()
        await asyncio.sleep(0.02)
        permit.done()

    assert await when_free(tell, ONE) == pytest.approx(1.1)


@pytest.mark.parametrize(("answered", "held"), [(False, 1.1), (True, 1.0)])
async def test_done_without_sent_frees_the_slot(virtual_clock: CheckedLoop, answered: bool, held: float) -> None:  # noqa: FBT001
    """If a request ends and its writing was not reported, the end counts as the time of writing, or of the answer."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(5.0)
        permit.done(answered=answered)

    assert await when_free(tell, ONE) == pytest.approx(5.0 + held)


# --- cancelled waiters ---


async def cancelled(task: asyncio.Task[Any], *, at: float) -> None:
    """Cancel the task at the time `at`, and assert that it ends as cancelled."""
    await asyncio.sleep(at - now())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_in_the_bucket(virtual_clock: CheckedLoop) -> None:
    """If a waiter is cancelled while the pace holds it back, the next one is granted at its time."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await cancelled(waiter, at=0.05)

    assert await take(limiter) == pytest.approx(0.1)


async def test_cancelled_in_the_queue(virtual_clock: CheckedLoop) -> None:
    """If a waiter in the middle of the queue is cancelled, the next one is granted at its time."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    first, second, third = (asyncio.create_task(take(limiter)) for _ in range(3))
    await cancelled(second, at=0.05)

    assert (await first, await third) == pytest.approx((0.1, 0.2))


async def test_cancelled_in_the_guard(virtual_clock: CheckedLoop) -> None:
    """If a waiter is cancelled while the window is full, the next one gets the first slot that is freed."""
    limiter = LocalLimiter(RateLimit(requests=2, burst=2))
    first, _ = await limiter.acquire(), await limiter.acquire()
    assert first is not None
    waiter = asyncio.create_task(take(limiter))
    await cancelled(waiter, at=5.0)
    first.done(answered=True)

    assert await take(limiter) == pytest.approx(6.0)


async def test_cancelled_in_a_pause(virtual_clock: CheckedLoop) -> None:
    """If a waiter is cancelled in a pause, it takes no slot, even if the pace would already have allowed it."""
    limiter = LocalLimiter(RateLimit(requests=1, per=60.0))
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(59.0)
    limiter.pause_until(70.0)
    await cancelled(waiter, at=65.0)

    assert await take(limiter) == pytest.approx(70.0)


@settings(deadline=None)
@given(
    limit=st.builds(RateLimit, requests=st.integers(4, 8), burst=st.integers(1, 4)),
    calls=st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 30)), max_size=40),
)
def test_cancelled_waiters_delay_nobody(limit: RateLimit, calls: list[tuple[int, int | None]]) -> None:
    """If waiters are cancelled, the others are granted no later than if the cancelled ones had never called."""
    # No two waiters call at the same instant, because their order must be certain.
    starts = [start / 20 + index / 1000 for index, (start, _) in enumerate(calls)]
    waits = [math.inf if wait is None else wait / 20 for _, wait in calls]

    async def grants(starts: list[float], waits: list[float]) -> list[float]:
        limiter = LocalLimiter(limit)

        async def waiter(start: float, wait: float) -> float:
            await asyncio.sleep(start)
            try:
                async with asyncio.timeout(None if math.isinf(wait) else wait):
                    return await take(limiter)
            except TimeoutError:
                return math.inf

        return await asyncio.gather(*map(waiter, starts, waits))

    granted = run(grants(starts, waits))
    patient = [start for start, at in zip(starts, granted, strict=True) if at < math.inf]
    without = run(grants(patient, [math.inf] * len(patient)))

    assert len(without) == len(patient)
    assert all(at <= other + ROUNDING for at, other in zip(filter(math.isfinite, granted), without, strict=True))


# --- pauses ---


async def test_pause_over_a_wait_for_the_bucket(virtual_clock: CheckedLoop) -> None:
    """If a pause begins while the pace holds a waiter back, the waiter also waits for the end of the pause."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.05)
    limiter.pause_until(2.0)

    assert await waiter == pytest.approx(2.0)


async def test_pause_over_a_wait_for_the_guard(virtual_clock: CheckedLoop) -> None:
    """If a pause begins while the window is full, the waiter waits until the pause is over, too."""
    limiter = LocalLimiter(RateLimit(requests=2, burst=2))
    await take(limiter)
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.5)
    limiter.pause_until(2.0)

    assert await waiter == pytest.approx(2.0)


async def test_pause_over_a_pause(virtual_clock: CheckedLoop) -> None:
    """If a later pause begins, requests that wait for the end of an earlier pause wait for both."""
    limiter = LocalLimiter(NOMINAL)
    limiter.pause_until(2.0)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(1.0)
    limiter.pause_until(3.0)

    assert await waiter == pytest.approx(3.0)


async def test_pause_never_moves_earlier(virtual_clock: CheckedLoop) -> None:
    """If a second, shorter pause is asked for, the first one still lasts to its end."""
    limiter = LocalLimiter(NOMINAL)
    limiter.pause_until(5.0)
    limiter.pause_until(3.0)

    assert await take(limiter) == pytest.approx(5.0)


@pytest.mark.parametrize("deadline", [61.0, 1e9, math.inf])
async def test_pause_is_capped(virtual_clock: CheckedLoop, deadline: float) -> None:
    """If the server asks for a longer pause, the pause still ends 60 s after the answer."""
    limiter = LocalLimiter(NOMINAL)
    await asyncio.sleep(7.0)
    limiter.pause_until(7.0 + deadline)

    assert await take(limiter) == pytest.approx(7.0 + MAX_PAUSE)


async def test_finished_requests_do_not_end_a_pause(virtual_clock: CheckedLoop) -> None:
    """If a slot is freed during a pause, no request is granted before the pause ends."""
    limiter = LocalLimiter(ONE)
    permit = await limiter.acquire()
    assert permit is not None
    limiter.pause_until(30.0)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(10.0)
    permit.done(answered=True)

    assert await waiter == pytest.approx(30.0)


# --- without a limit ---


async def test_no_limit(virtual_clock: CheckedLoop) -> None:
    """If the limit is None, a thousand requests are granted together, without permits."""
    limiter = LocalLimiter(None)
    permits = [await limiter.acquire() for _ in range(1000)]

    assert now() < ROUNDING

    assert permits == [None] * 1000


async def test_no_limit_honours_pauses(virtual_clock: CheckedLoop) -> None:
    """If the limit is None, a pause still holds requests back."""
    limiter = LocalLimiter(None)
    limiter.pause_until(5.0)

    assert await take(limiter) == pytest.approx(5.0)


# --- event loops ---


async def ask(limiter: LocalLimiter) -> None:
    """Use the limiter as a request does."""
    await limiter.acquire()


async def pause(limiter: LocalLimiter) -> None:
    """Use the limiter as an answer does."""
    limiter.pause_until(0.0)


@pytest.mark.parametrize("use", [ask, pause])
def test_second_loop_is_refused(use: Callable[[LocalLimiter], Coroutine[None, None, None]]) -> None:
    """If the loop that first used a limiter is still open, use in another loop raises an error."""
    limiter = LocalLimiter(NOMINAL)
    first = VirtualTimeLoop()
    try:
        first.run_until_complete(use(limiter))
        with pytest.raises(WrongLoopError, match="one limiter for each loop"):
            run(use(limiter))
        first.run_until_complete(use(limiter))
    finally:
        first.close()


def test_loop_after_loop() -> None:
    """If the limiter's loop is closed, the limiter works in the next loop."""
    limiter = LocalLimiter(NOMINAL)

    assert max(run(take(limiter)) for _ in range(3)) < ROUNDING


def test_requests_of_a_closed_loop_count() -> None:
    """If a loop is closed, its requests count in the next loop for one window, because the server still counts them."""

    async def leave_one_unsent(limiter: LocalLimiter) -> None:
        await asyncio.sleep(1000.0)
        await limiter.acquire()

    limiter = LocalLimiter(ONE)
    run(leave_one_unsent(limiter))

    assert run(take(limiter)) == pytest.approx(1.1)


async def leave_one_waiting(limiter: LocalLimiter) -> tuple[Permit, asyncio.Task[Any]]:
    """Return a request's permit, and the task of a second request that still waits for its slot."""
    permit = await limiter.acquire()
    assert permit is not None
    waiter = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(5.0)
    return permit, waiter


def test_waiter_of_a_closed_loop_does_not_count() -> None:
    """If a closed loop left a waiter behind, waiters in the next loop are still woken and granted."""

    async def go_on() -> float:
        waiter = asyncio.create_task(take(limiter))
        await asyncio.sleep(0.5)
        left_behind.get_coro().close()
        permit.sent()
        return await waiter

    limiter = LocalLimiter(ONE)
    loop = VirtualTimeLoop()
    try:
        permit, left_behind = loop.run_until_complete(leave_one_waiting(limiter))
    finally:
        loop.close()

    assert run(go_on()) == pytest.approx(1.1)


def test_waiter_of_a_closed_loop_is_not_woken() -> None:
    """If a closed loop left a waiter behind, a request in the next loop does not try to wake it."""

    async def go_on() -> float:
        await asyncio.sleep(100.0)
        return await take(limiter)

    async def leave_one_paused() -> asyncio.Task[Any]:
        limiter.pause_until(10.0)
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(5.0)
        return waiter

    limiter = LocalLimiter(NOMINAL)
    loop = VirtualTimeLoop()
    try:
        left_behind = loop.run_until_complete(leave_one_paused())
    finally:
        loop.close()

    assert run(go_on()) == pytest.approx(100.0)
    left_behind.get_coro().close()


def test_pause_outlives_its_loop() -> None:
    """If a loop is closed in a pause, the pause also holds in the next loop, for at most `MAX_PAUSE`."""

    async def pause_late(limiter: LocalLimiter) -> None:
        await asyncio.sleep(1000.0)
        limiter.pause_until(1030.0)

    limiter = LocalLimiter(NOMINAL)
    run(pause_late(limiter))

    assert run(take(limiter)) == pytest.approx(MAX_PAUSE)


# --- invalid settings ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["requests"], [0, -1, 1.5, True, "50", None, math.inf]),
        *itertools.product(["per"], [0, 0.0, -1.0, math.inf, math.nan, True, "1", None]),
        *itertools.product(["burst"], [0, -1, 51, 1.5, True, "5", None]),
        *itertools.product(["jitter"], [-0.001, math.inf, math.nan, True, "0", None]),
    ],
)
def test_impossible_value(field: str, value: Any) -> None:
    """If a setting is outside its range, the error at construction has the name of the setting."""
    with pytest.raises(ConfigurationError, match=rf"^RateLimit\.{field} must be .*, not "):
        RateLimit(**{field: value})


@pytest.mark.parametrize(
    "limit",
    [
        RateLimit(requests=1, burst=1, per=1, jitter=0),
        RateLimit(requests=50, burst=50),
        RateLimit(requests=10_000, per=0.001, jitter=60.0),
    ],
)
def test_possible_values(limit: RateLimit) -> None:
    """If a setting is at the end of its range, it is accepted."""
    assert limit == attrs.evolve(limit)


def test_defaults() -> None:
    """If no limit is given, it is the API's 50 requests a second."""
    assert RateLimit(requests=50, per=1.0, burst=5, jitter=0.025) == RateLimit()


@pytest.mark.parametrize(("requests", "burst"), [(1, 1), (9, 1), (20, 2), (200, 20)])
def test_default_burst(requests: int, burst: int) -> None:
    """If no burst is given, it is a tenth of the requests, and at least one."""
    assert burst == RateLimit(requests=requests).burst
