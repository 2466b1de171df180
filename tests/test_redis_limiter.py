"""The limit that a fleet shares, on a real Redis: kept, shared fairly, and outliving whatever happens to Redis."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from retailrocket_async import ConfigurationError, LocalLimiter, RateLimit, RetailRocketError, WrongLoopError
from retailrocket_async.redis import RedisLimiter, RedisUnreachableError
from retailrocket_async.redis._absence import share
from tests.contracts.limiter import LimiterContract, now, take, worst_window
from tests.redis_server import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from retailrocket_async import Limiter, Permit

__all__ = ["redis_server"]

pytestmark = pytest.mark.needs_server("redis-server")

T = TypeVar("T")

KEY = "retailrocket:{shop}:limit"
PATIENCE = 30.0
"""Seconds in which even a busy machine gets there."""


class TestRedisLimiter(LimiterContract):
    """`RedisLimiter` keeps the contract."""

    per = 0.5
    lateness = 0.5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url
        self.clients: list[Redis] = []

    def make(self, rate_limit: RateLimit) -> Limiter:
        """Return a new one, in a fleet of its own."""
        client = Redis.from_url(self.url)
        self.clients.append(client)
        return RedisLimiter(client, rate_limit)

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run `test` in real time; close the clients."""

        async def main() -> T:
            try:
                return await test
            finally:
                for client in self.clients:
                    await client.aclose()

        return asyncio.run(main())

    def test_pause_ends(self) -> None:
        """Once a pause is over, requests leave again."""
        super().test_pause_ends()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """Give a client of the test's server."""
    async with Redis.from_url(redis_server.url) as client:
        yield client


async def until(condition: Any) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def saturate(limiters: list[RedisLimiter], seconds: float, *, senders: int = 3) -> list[list[float]]:
    """Make requests for so long through each limiter, as fast as it allows; return when each granted them."""
    end = now() + seconds

    async def sender(limiter: RedisLimiter, times: list[float]) -> None:
        while now() < end:
            times.append(await take(limiter))

    times: list[list[float]] = [[] for _ in limiters]
    await asyncio.gather(*(sender(limiter, own) for limiter, own in zip(limiters, times, strict=True) for _ in range(senders)))
    return times


async def commands(client: Redis) -> int:
    """Return how many scripts were run."""
    statistics = await client.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the package has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "retailrocket_async"]


# --- one limit for all ---


async def test_several_processes_share_one_limit(redis: Redis) -> None:
    """Whatever the number of limiters, no window holds more than the one limit, and each gets its part."""
    limit = RateLimit(requests=20, per=0.5)
    limiters = [RedisLimiter(redis, limit) for _ in range(4)]

    times = await saturate(limiters, 2.5)

    assert worst_window([at for own in times for at in own], limit.per) <= limit.requests
    # One booking at a time: nobody is ahead of another by more than the burst.
    assert max(map(len, times)) - min(map(len, times)) <= limit.burst + 1


async def test_a_permit_costs_one_command(redis: Redis) -> None:
    """What becomes of a request is told along with the next booking."""
    limiters = [RedisLimiter(redis, RateLimit(requests=20, per=0.5)) for _ in range(4)]
    before = await commands(redis)

    times = await saturate(limiters, 2.0)

    # One booking of each may be left, and the script is loaded by a second command.
    assert await commands(redis) - before <= 1.1 * sum(map(len, times)) + 2 * len(limiters)


async def test_shops_do_not_share(redis: Redis) -> None:
    """Limiters of different names have nothing to do with each other."""
    limit = RateLimit(requests=1, per=60.0)
    async with asyncio.timeout(PATIENCE):
        for name in ("a", "b"):
            await take(RedisLimiter(redis, limit, name=name))

    assert {key.decode().split("}")[0] for key in await redis.keys("*")} == {"retailrocket:{a", "retailrocket:{b"}


async def test_a_pause_holds_all_processes(redis: Redis) -> None:
    """What one process was asked to wait for, another waits for."""
    one, other = RedisLimiter(redis), RedisLimiter(redis)
    end = now() + 0.7
    one.pause_until(end)
    await until_told(redis, "open")

    assert await take(other) >= end


async def test_a_refusal_slows_all_processes(redis: Redis) -> None:
    """A 429 that one process met pauses the others, and cuts their pace once for an incident."""
    limit = RateLimit(requests=20, per=0.2)
    one, other = RedisLimiter(redis, limit), RedisLimiter(redis, limit)
    begin = await take(one)
    one.throttled(begin)
    one.throttled(begin)
    await until_told(redis, "slow")
    first = await take(other)
    times = [await take(other) for _ in range(10)]

    assert first >= begin + limit.per
    state = {field.decode(): float(value) for field, value in (await redis.hgetall(KEY)).items()}
    # One cut of 0.3 takes 15 s of recovery, which begins when the pause is over.
    assert state["slow"] - state["over"] == pytest.approx(15e6)
    assert times[-1] - first >= 10 * 0.95 * limit.per / limit.requests / 0.72


async def test_refusals_in_a_row_pause_longer(redis: Redis) -> None:
    """Every incident in a row doubles the pause and cuts the pace, and never under a tenth."""
    limiter = RedisLimiter(redis, RateLimit(requests=20, per=0.05))
    penalties = []
    for number in range(9):
        limiter.throttled(now())
        await until_told(redis, "penalty", above=0.05e6 * 2**number - 1)
        # The next one is of a request that was sent after the pause.
        state = {field.decode(): float(value) for field, value in (await redis.hgetall(KEY)).items()}
        penalties.append(state["penalty"] / 1e6)
        await redis.hset(KEY, mapping={"over": int(time.time() * 1e6) - 1000, "open": 0})  # the pause is over
        if number == 7:
            break

    assert penalties == pytest.approx([0.05 * 2**number for number in range(8)])


async def until_told(client: Redis, field: str, above: float = 0.0) -> None:
    """Wait until Redis knows of something."""
    async with asyncio.timeout(PATIENCE):
        while float(await client.hget(KEY, field) or 0) <= above:  # type: ignore[misc]
            await asyncio.sleep(0.005)
