"""Tests that every implementation of a limiter must pass; the test class of each implementation inherits them."""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from retailrocket_async._delivery.rate_limiter import Limiter, RateLimit
from tests.support import virtual_time

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

T = TypeVar("T")

ROUNDING = 1e-6
"""Tolerance in seconds, larger than the rounding of floats and much smaller than any time that matters to a limit."""


def worst_window(times: Iterable[float], per: float) -> int:
    """Return the largest number of `times` in any window `(t - per, t]`."""
    ordered = sorted(times)
    worst = first = 0
    for last, at in enumerate(ordered):
        while ordered[first] <= at - per + ROUNDING:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


class LimiterContract(abc.ABC):
    """Tests that a limiter must pass. A subclass defines `make`, and also `run` and `per` if it needs real time."""

    per: float = 1.0
    """The length of the limit's window in these tests, in seconds."""

    lateness: float = 0.0
    """Seconds by which a permit may come too late on a real machine; 0 on a virtual clock, which is never late."""

    @abc.abstractmethod
    def make(self, rate_limit: RateLimit) -> Limiter:
        """Return a new limiter that lets no more requests through than `rate_limit` allows."""

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine `test` on a new event loop."""
        return virtual_time.run(test)

    def limit(self, requests: int, *, burst: int = 1) -> RateLimit:
        """Return a limit of `requests` in a window of `per` seconds."""
        return RateLimit(requests=requests, per=self.per, burst=burst)

    def test_is_a_limiter(self) -> None:
        """The limiter has all methods of the protocol `Limiter`."""
        assert isinstance(self.make(self.limit(10)), Limiter)

    def test_first_request_does_not_wait(self) -> None:
        """The first request is granted without a wait."""

        async def test() -> None:
            async with asyncio.timeout(self.per / 10 + self.lateness):
                await take(self.make(self.limit(2)))

        self.run(test())

    def test_window_is_never_overfull(self) -> None:
        """If many callers wait, no window contains more requests than the limit allows."""
        limit = self.limit(10, burst=2)

        async def test() -> list[float]:
            limiter = self.make(limit)
            return await asyncio.gather(*(take(limiter) for _ in range(35)))

        assert worst_window(self.run(test()), self.per) <= limit.requests

    def test_every_waiter_is_granted(self) -> None:
        """If many callers wait, all of them get a permit, at about the pace of the limit."""
        limit = self.limit(10, burst=2)

        async def test() -> list[float]:
            limiter = self.make(limit)
            return await asyncio.gather(*(take(limiter) for _ in range(35)))

        times = self.run(test())
        # 35 requests fill three and a half windows, so they take at most four.
        assert max(times) - min(times) <= 4 * (limit.per + limit.jitter) + self.lateness

    def test_first_come_first_served(self) -> None:
        """If several callers wait, they get permits in the order of their calls."""

        async def test() -> list[int]:
            limiter = self.make(self.limit(10))
            order: list[int] = []

            async def waiter(number: int) -> None:
                await take(limiter)
                order.append(number)

            async with asyncio.TaskGroup() as tasks:
                for number in range(20):
                    tasks.create_task(waiter(number))
            return order

        assert list(range(20)) == self.run(test())

    def test_cancelled_waiters_block_nobody(self) -> None:
        """If all earlier waiters are cancelled, the next waiter gets a permit as early as if it were the first one."""

        async def test() -> float:
            limiter = self.make(self.limit(4))
            begin = await take(limiter)
            waiters = [asyncio.create_task(take(limiter)) for _ in range(20)]
            last = asyncio.create_task(take(limiter))
            await asyncio.sleep(self.per / 8)
            for waiter in waiters:
                waiter.cancel()
            return await last - begin

        assert self.run(test()) < self.per * 0.75 + self.lateness

    def test_pause_holds_new_callers(self) -> None:
        """If a request is made during a pause, it gets no permit before the end of the pause."""

        async def test() -> float:
            limiter = self.make(self.limit(10))
            end = now() + self.per
            limiter.pause_until(end)
            return await take(limiter) - end

        assert self.run(test()) >= 0.0

    def test_pause_holds_waiters(self) -> None:
        """If a caller waits when a pause begins, the caller gets no permit before the end of the pause."""

        async def test() -> float:
            limiter = self.make(self.limit(4))
            await take(limiter)
            waiter = asyncio.create_task(take(limiter))
            await asyncio.sleep(self.per / 8)
            end = now() + self.per
            limiter.pause_until(end)
            return await waiter - end

        assert self.run(test()) >= 0.0

    @pytest.mark.parametrize("second", [0.0, 0.5, -1.0])
    def test_pause_is_never_shortened(self, second: float) -> None:
        """If a second pause has an earlier end than the first, the later end remains."""

        async def test() -> float:
            limiter = self.make(self.limit(10))
            begin = now()
            limiter.pause_until(begin + self.per)
            limiter.pause_until(begin + second * self.per)
            return await take(limiter) - begin

        assert self.run(test()) >= self.per

    def test_pause_ends(self) -> None:
        """When a pause is over, requests get permits again."""

        async def test() -> None:
            limiter = self.make(self.limit(10))
            limiter.pause_until(now() + self.per)
            async with asyncio.timeout(1.5 * self.per + self.lateness):
                await take(limiter)

        self.run(test())


def now() -> float:
    """Return the event loop's time in seconds."""
    return asyncio.get_running_loop().time()


async def take(limiter: Limiter) -> float:
    """Take a permit for a request that is sent and answered immediately; return the time at which it was granted."""
    permit = await limiter.acquire()
    at = now()
    if permit is not None:
        permit.sent()
        permit.done(answered=True)
    return at
