"""The request limit on a virtual clock, as a server counts it at the end of an uneven network."""

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
    """`LocalLimiter` keeps the contract."""

    def make(self, rate_limit: RateLimit) -> Limiter:
        """Return a new one."""
        return LocalLimiter(rate_limit)


# --- requests as the server counts them ---


@attrs.frozen
class Way:
    """The times of one request between its grant and its end; all in seconds."""

    connecting: float = 0.0
    """From the grant to the write, while others run."""
    blocked: float = 0.0
    """From the grant to the write, while the loop stands still."""
    network: float = 0.0
    """From the write to the arrival, above the network's shortest time."""
    answer: float | None = 0.0
    """From the arrival to the end of the answer; None where the request is cancelled right after it was written."""


SHORTEST = 0.03
"""Seconds that the network takes at least; the limiter does not know it, and need not."""


async def demand(limiter: Limiter, ways: Iterable[Way], *, senders: int = 8, seconds: float = math.inf) -> list[float]:
    """Make requests that go these `ways`, as fast as the limiter allows; return the times of their arrivals."""
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
    """Draw a limit, and requests whose delays differ by no more than its jitter."""
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
    """Whenever the network's delays differ by no more than `jitter`, no window of arrivals exceeds the limit."""
    limit, ways = limit_and_ways
    arrivals = run(demand(LocalLimiter(limit), ways))

    assert len(ways) == len(arrivals)
    assert worst_window(arrivals, limit.per) <= limit.requests


def uneven_network(*, spread: float = 0.02, answer: float = 0.0) -> Iterable[Way]:
    """Requests without end, of a client with ordinary delays of its own."""
    chance = random.Random(0)
    while True:
        yield Way(connecting=chance.uniform(0.0, 0.002), network=chance.uniform(0.0, spread), answer=answer)


async def blocking() -> None:
    """Block the loop 5 ms at a time, half of the time."""
    while True:
        block(0.005)
        await asyncio.sleep(0.005)


async def steady_demand(ways: Iterable[Way], *, blocked: bool) -> list[float]:
    """Demand without end for half a minute of the loop's time."""
    other_work = asyncio.create_task(blocking()) if blocked else None
    arrivals = await demand(LocalLimiter(NOMINAL), ways, seconds=30.0)
    if other_work is not None:
        other_work.cancel()
    return sorted(arrivals)


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
    """Demand without end uses at least 97 % of the limit, 95 % if an answer takes 0.1 s, and never exceeds it."""
    arrivals = await steady_demand(uneven_network(spread=spread, answer=answer), blocked=blocked)
    steady = [at for at in arrivals if 1.0 <= at < 29.0]

    assert len(steady) / 28.0 >= wanted * NOMINAL.requests
    assert worst_window(arrivals, NOMINAL.per) <= NOMINAL.requests


def test_quiet_moments_are_not_saved_up() -> None:
    """After an hour without a request at most `burst` requests leave together."""

    async def test() -> list[float]:
        limiter = LocalLimiter(NOMINAL)
        await take(limiter)
        await asyncio.sleep(3600.0)
        begin = now()
        return [at - begin for at in await asyncio.gather(*(take(limiter) for _ in range(20)))]

    assert sum(at < ROUNDING for at in run(test())) == NOMINAL.burst


async def test_two_clients_share_one_limit(virtual_clock: CheckedLoop) -> None:
    """A limiter shared by two clients keeps their sum within the limit, and lets each have its half."""
    limiter = LocalLimiter(NOMINAL)
    one, other = await asyncio.gather(
        demand(limiter, uneven_network(), seconds=10.0), demand(limiter, uneven_network(), seconds=10.0)
    )

    assert worst_window(one + other, NOMINAL.per) <= NOMINAL.requests
    assert abs(len(one) - len(other)) <= 0.1 * len(one)


# --- the time of a slot ---


async def when_free(tell: Callable[[Permit], Coroutine[None, None, None]], limit: RateLimit) -> float:
    """Return when the second request is granted by a limiter with one slot; `tell` reports on the first request."""
    limiter = LocalLimiter(limit)
    permit = await limiter.acquire()
    assert permit is not None
    telling = asyncio.create_task(tell(permit))
    granted = await take(limiter)
    await telling
    return granted


ONE = RateLimit(requests=1, per=1.0, jitter=0.1)


async def test_unsent_request_keeps_its_slot(virtual_clock: CheckedLoop) -> None:
    """A request that is not yet written counts, however long that takes, and for a full window after it."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(1000.0)
        permit.sent()

    assert await when_free(tell, ONE) == pytest.approx(1000.0 + 1.1)


async def test_written_request_frees_its_slot(virtual_clock: CheckedLoop) -> None:
    """A slot is free `per + jitter` after the writing if no answer comes sooner."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(0.5)
        permit.sent()
        await asyncio.sleep(0.3)
        permit.done(answered=True)

    assert await when_free(tell, ONE) == pytest.approx(0.5 + 1.1)


async def test_prompt_answer_frees_the_slot_sooner(virtual_clock: CheckedLoop) -> None:
    """An answer proves the arrival: the slot is free `per` after it, for any jitter of the network."""

    async def tell(permit: Permit) -> None:
        permit.sent()
        await asyncio.sleep(0.02)
        permit.done(answered=True)

    assert await when_free(tell, ONE) == pytest.approx(0.02 + 1.0)


async def test_cancelled_request_frees_its_slot_no_sooner(virtual_clock: CheckedLoop) -> None:
    """A request cancelled after its writing may still arrive: its slot is free `per + jitter` after the writing."""

    async def tell(permit: Permit) -> None:
        permit.sent()
        await asyncio.sleep(0.02)
        permit.done()

    assert await when_free(tell, ONE) == pytest.approx(1.1)


@pytest.mark.parametrize(("answered", "held"), [(False, 1.1), (True, 1.0)])
async def test_done_without_sent_frees_the_slot(virtual_clock: CheckedLoop, answered: bool, held: float) -> None:  # noqa: FBT001
    """A request that ended without a report of its writing counts as if written, or answered, at its end."""

    async def tell(permit: Permit) -> None:
        await asyncio.sleep(5.0)
        permit.done(answered=answered)

    assert await when_free(tell, ONE) == pytest.approx(5.0 + held)


# --- cancelled waiters ---


async def cancelled(task: asyncio.Task[Any], *, at: float) -> None:
    """Cancel `task` at that time, and see it end so."""
    await asyncio.sleep(at - now())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_in_the_bucket(virtual_clock: CheckedLoop) -> None:
    """A waiter cancelled while the pace holds it takes nothing: the next one has its place."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await cancelled(waiter, at=0.05)

    assert await take(limiter) == pytest.approx(0.1)


async def test_cancelled_in_the_queue(virtual_clock: CheckedLoop) -> None:
    """A waiter cancelled behind others takes nothing: the one behind has its place."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    first, second, third = (asyncio.create_task(take(limiter)) for _ in range(3))
    await cancelled(second, at=0.05)

    assert (await first, await third) == pytest.approx((0.1, 0.2))


async def test_cancelled_in_the_guard(virtual_clock: CheckedLoop) -> None:
    """A waiter cancelled while the window is full takes nothing: the next one has the first slot that is freed."""
    limiter = LocalLimiter(RateLimit(requests=2, burst=2))
    first, _ = await limiter.acquire(), await limiter.acquire()
    assert first is not None
    waiter = asyncio.create_task(take(limiter))
    await cancelled(waiter, at=5.0)
    first.done(answered=True)

    assert await take(limiter) == pytest.approx(6.0)


async def test_cancelled_in_a_pause(virtual_clock: CheckedLoop) -> None:
    """A waiter cancelled in a pause that came over its wait takes nothing, though the bucket had let it through."""
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
    # No two of them call at the same instant: their order must be sure.
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
    """A pause that comes while the pace holds a waiter holds it, too."""
    limiter = LocalLimiter(RateLimit(requests=10, burst=1))
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.05)
    limiter.pause_until(2.0)

    assert await waiter == pytest.approx(2.0)


async def test_pause_over_a_wait_for_the_guard(virtual_clock: CheckedLoop) -> None:
    """A pause that comes while the window is full holds the waiter beyond the window's end."""
    limiter = LocalLimiter(RateLimit(requests=2, burst=2))
    await take(limiter)
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.5)
    limiter.pause_until(2.0)

    assert await waiter == pytest.approx(2.0)


async def test_pause_over_a_pause(virtual_clock: CheckedLoop) -> None:
    """A later pause also holds requests that already wait for the end of an earlier one."""
    limiter = LocalLimiter(NOMINAL)
    limiter.pause_until(2.0)
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(1.0)
    limiter.pause_until(3.0)

    assert await waiter == pytest.approx(3.0)


async def test_pause_never_moves_earlier(virtual_clock: CheckedLoop) -> None:
    """No answer can reopen the gate that another one closed."""
    limiter = LocalLimiter(NOMINAL)
    limiter.pause_until(5.0)
    limiter.pause_until(3.0)

    assert await take(limiter) == pytest.approx(5.0)


@pytest.mark.parametrize("deadline", [61.0, 1e9, math.inf])
async def test_pause_is_capped(virtual_clock: CheckedLoop, deadline: float) -> None:
    """Whatever the server asks for, a pause ends 60 s after the answer."""
    limiter = LocalLimiter(NOMINAL)
    await asyncio.sleep(7.0)
    limiter.pause_until(7.0 + deadline)

    assert await take(limiter) == pytest.approx(7.0 + MAX_PAUSE)


async def test_finished_requests_do_not_end_a_pause(virtual_clock: CheckedLoop) -> None:
    """A slot that is freed during a pause admits no request."""
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
    """None lifts the limit: a thousand requests leave together, and have no permits."""
    limiter = LocalLimiter(None)
    permits = [await limiter.acquire() for _ in range(1000)]

    assert now() < ROUNDING

    assert permits == [None] * 1000


async def test_no_limit_honours_pauses(virtual_clock: CheckedLoop) -> None:
    """A pause holds requests back even without a limit."""
    limiter = LocalLimiter(None)
    limiter.pause_until(5.0)

    assert await take(limiter) == pytest.approx(5.0)


# --- event loops ---


async def ask(limiter: LocalLimiter) -> None:
    """Use a limiter as a request does."""
    await limiter.acquire()


async def pause(limiter: LocalLimiter) -> None:
    """Use a limiter as an answer does."""
    limiter.pause_until(0.0)


@pytest.mark.parametrize("use", [ask, pause])
def test_second_loop_is_refused(use: Callable[[LocalLimiter], Coroutine[None, None, None]]) -> None:
    """While the loop that first used a limiter lives, another one must not use it."""
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
    """Once its loop is closed, a limiter works on the next one."""
    limiter = LocalLimiter(NOMINAL)

    assert max(run(take(limiter)) for _ in range(3)) < ROUNDING


def test_requests_of_a_closed_loop_count() -> None:
    """The server remembers the requests of a closed loop, so the limiter does, for one window and no longer."""

    async def leave_one_unsent(limiter: LocalLimiter) -> None:
        await asyncio.sleep(1000.0)
        await limiter.acquire()

    limiter = LocalLimiter(ONE)
    run(leave_one_unsent(limiter))

    assert run(take(limiter)) == pytest.approx(1.1)


async def leave_one_waiting(limiter: LocalLimiter) -> tuple[Permit, asyncio.Task[Any]]:
    """Return the permit of a request, and a task that waits for its slot, when the loop stops."""
    permit = await limiter.acquire()
    assert permit is not None
    waiter = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(5.0)
    return permit, waiter


def test_waiter_of_a_closed_loop_does_not_count() -> None:
    """A waiter that its loop left behind neither blocks nor deafens the waiters of the next loop."""

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
    """A request on the next loop does not reach for a waiter that a closed one left behind."""

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
    """A pause holds on the next loop, too, but no longer than a pause may be."""

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
    """A value outside its range is refused at construction, with the name of its field."""
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
    """The ends of the ranges are within them."""
    assert limit == attrs.evolve(limit)


def test_defaults() -> None:
    """The default is the API's limit, 50 requests a second."""
    assert RateLimit(requests=50, per=1.0, burst=5, jitter=0.025) == RateLimit()


@pytest.mark.parametrize(("requests", "burst"), [(1, 1), (9, 1), (20, 2), (200, 20)])
def test_default_burst(requests: int, burst: int) -> None:
    """The default burst is a tenth of the requests, and at least one."""
    assert burst == RateLimit(requests=requests).burst
