"""Tests of `RedisLimiter` on a real Redis: the limit is kept and shared fairly, also while Redis fails."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster

from retailrocket_async import ConfigurationError, RateLimit, RetailRocketError, WrongLoopError
from retailrocket_async.redis import RedisLimiter, RedisUnreachableError
from retailrocket_async.redis._outage import share
from retailrocket_async.redis._permit import SharedPermit
from tests.contracts.limiter import LimiterContract, now, take, worst_window
from tests.support.redis_server import RedisServer, free_port, redis_server
from tests.support.source_internals import age_last_answer, age_reservation, has_reservation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from retailrocket_async import Limiter

__all__ = ["redis_server"]

pytestmark = pytest.mark.needs_server("redis-server")

T = TypeVar("T")

KEY = "retailrocket:{shop}:limit"
PATIENCE = 30.0
"""Longest time in seconds that a test waits for a condition; it is enough on a busy machine."""


class TestRedisLimiter(LimiterContract):
    """Run the tests that every limiter must pass on a `RedisLimiter`."""

    per = 0.5
    lateness = 0.5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url
        self.clients: list[Redis] = []

    def make(self, rate_limit: RateLimit) -> Limiter:
        """Return a new limiter; each test has its own server."""
        client = Redis.from_url(self.url)
        self.clients.append(client)
        return RedisLimiter(client, rate_limit)

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run `test` in real time, and close the clients afterwards."""

        async def main() -> T:
            try:
                return await test
            finally:
                await until(nothing_runs)
                for client in self.clients:
                    await client.aclose()
                self.clients.clear()

        return asyncio.run(main())


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """Yield a client of the server; close it after all tasks of limiters have ended, because they would reconnect."""
    async with Redis.from_url(redis_server.url) as client:
        yield client
        await until(nothing_runs)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after `PATIENCE` seconds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


def nothing_runs() -> bool:
    """Return True if no other task runs, which means that all limiters have reported their requests to Redis."""
    return asyncio.all_tasks() == {asyncio.current_task()}


async def saturate(limiters: list[RedisLimiter], seconds: float, *, senders: int = 3) -> list[list[float]]:
    """Make requests for `seconds` through each limiter, as fast as it allows; return when each request was granted."""
    end = now() + seconds

    async def sender(limiter: RedisLimiter, times: list[float]) -> None:
        while now() < end:
            times.append(await take(limiter))

    times: list[list[float]] = [[] for _ in limiters]
    await asyncio.gather(
        *(sender(limiter, own) for limiter, own in zip(limiters, times, strict=True) for _ in range(senders))
    )
    return times


async def commands(client: Redis) -> int:
    """Return the number of commands by which the server has run a script."""
    statistics = await client.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that the package has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "retailrocket_async"]


# --- one limit for all processes ---


async def test_several_processes_share_one_limit(redis: Redis) -> None:
    """If four limiters share a limit, no window exceeds it, and all of them send about the same number of requests."""
    limit = RateLimit(requests=20, per=0.5)
    # On a busy machine a command may take longer than the default time-out. The limiter would treat this as an outage
    # of Redis, and send its share without asking Redis. Together the limiters would then exceed the limit, so the
    # time-out is long here.
    limiters = [RedisLimiter(redis, limit, timeout=PATIENCE) for _ in range(4)]

    times = await saturate(limiters, 2.5)

    assert worst_window([at for own in times for at in own], limit.per) <= limit.requests
    # A limiter has only one reservation at a time, so the numbers of requests differ by little more than the burst.
    assert max(map(len, times)) - min(map(len, times)) <= limit.burst + 1


async def test_a_permit_costs_one_command(redis: Redis) -> None:
    """A sent request is reported in the same Redis command as the next reservation, so a permit costs one command."""
    limiters = [RedisLimiter(redis, RateLimit(requests=20, per=0.5), timeout=PATIENCE) for _ in range(4)]
    before = await commands(redis)

    times = await saturate(limiters, 2.0)

    # Each limiter may have one reservation left, and loading the script takes a second command.
    assert await commands(redis) - before <= 1.1 * sum(map(len, times)) + 2 * len(limiters)


async def test_shops_do_not_share(redis: Any) -> None:
    """If limiters have different names, they share neither a limit nor keys."""
    limit = RateLimit(requests=1, per=60.0)
    async with asyncio.timeout(PATIENCE):
        for name in ("a", "b"):
            await take(RedisLimiter(redis, limit, name=name))

    assert {key.decode().split("}")[0] for key in await redis.keys("*")} == {"retailrocket:{a", "retailrocket:{b"}


async def test_a_pause_holds_all_processes(redis: Redis) -> None:
    """If one process is asked by the API to pause, another process pauses as well."""
    one, other = RedisLimiter(redis), RedisLimiter(redis)
    end = now() + 0.7
    one.pause_until(end)
    await until_reported(redis, "open")

    assert await take(other) >= end


async def test_a_refusal_slows_all_processes(redis: Redis) -> None:
    """If one process gets a 429, all processes pause; two 429s of one moment reduce their rate only once."""
    limit = RateLimit(requests=20, per=0.2)
    one, other = RedisLimiter(redis, limit), RedisLimiter(redis, limit)
    begin = await take(one)
    one.throttled(begin)
    one.throttled(begin)
    await until_reported(redis, "slow")
    first = await take(other)
    times = [await take(other) for _ in range(10)]

    assert first >= begin + limit.per
    state = await state_of(redis)
    # The rate is reduced by 0.3 once. It recovers in 15 s, which begin when the pause is over.
    assert state["slow"] - state["over"] == pytest.approx(15e6, rel=0, abs=1_000)
    assert times[-1] - first >= 10 * 0.95 * limit.per / limit.requests / 0.72


async def test_refusals_in_a_row_pause_longer(redis: Redis) -> None:
    """Each further 429 doubles the pause, up to 8 s, and reduces the rate, but not below a tenth."""
    limiter = RedisLimiter(redis, RateLimit(requests=20, per=1.0))
    penalties, paces = [], []
    for _ in range(8):
        before = float(await redis.hget(KEY, "over") or 0)
        limiter.throttled(now())
        await until_reported(redis, "over", above=before)
        state = await state_of(redis)
        penalties.append(state["penalty"] / 1e6)
        paces.append(1 - (state["slow"] - state["over"]) / 1e6 * 0.02)
        # This simulates that the pause is over, and that the next request is sent after it.
        await redis.hset(
            KEY, mapping={"over": state["seen"] - 1, "slow": state["slow"] - state["over"] + state["seen"], "open": 0}
        )
        await asyncio.sleep(0.001)

    assert penalties == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    assert paces == pytest.approx([max(0.1, 0.7**number) for number in range(1, 9)], abs=0.05)


async def test_an_unsent_request_is_counted_until_it_leaves(redis: Redis) -> None:
    """If a granted request is not written yet, other processes count it against the limit until it is written."""
    limit = RateLimit(requests=2, per=0.4, burst=2)
    one, other = RedisLimiter(redis, limit), RedisLimiter(redis, limit)
    permits = [await one.acquire() for _ in range(2)]

    async def both_are_held() -> bool:
        return sum(score > time.time() * 1e6 + 10e6 for _, score in await requests(redis)) == 2

    await until(both_are_held)
    waiter = asyncio.create_task(take(other))
    await asyncio.sleep(2 * limit.per)
    assert not waiter.done()

    sent_at = now()
    for permit in permits:
        assert permit is not None
        permit.sent()
        permit.done(answered=True)
    async with asyncio.timeout(PATIENCE):
        assert await waiter >= sent_at + limit.per


async def test_a_report_during_a_command_is_sent_as_well(redis: Redis) -> None:
    """If several requests are written late, all of them are reported to Redis, even without another reservation."""
    limiter = RedisLimiter(redis, RateLimit(requests=2, per=0.4, burst=2))
    permits = [await limiter.acquire() for _ in range(2)]

    async def all_are_held() -> bool:
        return sum(score > time.time() * 1e6 + 10e6 for _, score in await requests(redis)) == len(permits)

    await until(all_are_held)
    for permit in permits:
        assert permit is not None
        permit.done()
        await asyncio.sleep(0)

    async def none_is_held() -> bool:
        return not any(score > time.time() * 1e6 + 10e6 for _, score in await requests(redis))

    await until(none_is_held)


async def test_a_late_request_is_counted_when_it_leaves(redis: Redis) -> None:
    """If a request is written late, all processes count it from the time at which it was written."""
    limit = RateLimit(requests=1, per=2.0)
    one, other = RedisLimiter(redis, limit), RedisLimiter(redis, limit)
    permit = await one.acquire()
    [(_, believed)] = await requests(redis)
    await asyncio.sleep(0.05)
    assert permit is not None
    permit.sent()
    sent_at = now()

    async def is_reported() -> bool:
        return any(score > believed for _, score in await requests(redis))

    await until(is_reported)

    assert await take(other) >= sent_at + limit.per
    permit.done()


async def test_a_blocked_loop_overfills_no_window(redis: Redis) -> None:
    """If a process wakes too late for its reservations, it does not send a burst to catch up."""
    limit = RateLimit(requests=20, per=0.5)
    limiters = [RedisLimiter(redis, limit, timeout=PATIENCE) for _ in range(4)]
    block = time.sleep

    async def blocker() -> None:
        while True:
            block(0.15)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(blocker())
    # Other load on the machine may stop this process for longer than `jitter` allows: one of three runs must succeed.
    for _ in range(3):
        times = await saturate(limiters, 3.0)
        worst = worst_window([at for own in times for at in own], limit.per)
        if worst <= limit.requests:
            break
    task.cancel()

    assert worst <= limit.requests


# --- callers that wait for a permit ---


async def test_a_cancelled_waiter_leaves_its_reservation_to_the_next(redis: Redis) -> None:
    """If a waiter is cancelled, the next waiter gets the time that was reserved for it in Redis."""
    limit = RateLimit(requests=4, per=1.2, burst=1)
    limiter = RedisLimiter(redis, limit)
    await take(limiter)
    waiter, last = (asyncio.create_task(take(limiter)) for _ in range(2))

    async def is_reserved() -> bool:
        return len(await requests(redis)) == 2

    await until(is_reserved)
    waiter.cancel()

    async with asyncio.timeout(PATIENCE):
        await last
    assert len(await requests(redis)) == 2


async def test_a_reservation_that_nobody_uses_is_returned(redis: Redis) -> None:
    """If a time that was reserved in Redis is not used, it is returned, and does not delay the next reservation."""
    limit = RateLimit(requests=4, per=8.0, burst=1)
    limiter = RedisLimiter(redis, limit)
    await take(limiter)
    waiter = asyncio.create_task(take(limiter))

    async def is_reserved() -> bool:
        return len(await requests(redis)) == 2

    await until(is_reserved)
    await until(lambda: has_reservation(limiter))
    waiter.cancel()
    await asyncio.wait([waiter])
    # This simulates that the reserved time was long ago.
    age_reservation(limiter, 2 * limit.per)
    before = await state_of(redis)
    waiter = asyncio.create_task(take(limiter))
    await until_reported(redis, "seen", above=before["seen"])
    waiter.cancel()

    assert await is_reserved()
    # `next` is in microseconds since the epoch; a reservation that was not returned would add 2 s to it.
    assert (await state_of(redis))["next"] == pytest.approx(before["next"], rel=0, abs=1_000)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_at_any_await_harms_nobody(redis: Redis, turns: int) -> None:
    """If a waiter is cancelled at any await, the waiters after it still get their permits."""
    limiter = RedisLimiter(redis, RateLimit(requests=50, per=0.5))
    waiters = [asyncio.create_task(take(limiter)) for _ in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    waiters[0].cancel()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiters[1:])


@pytest.mark.parametrize("turns", range(8))
async def test_without_waiters_no_command_goes_on(redis: Redis, turns: int) -> None:
    """If the last waiter is cancelled, no command keeps running, and the client can be closed; later calls work."""
    limiter = RedisLimiter(redis)
    waiter = asyncio.create_task(limiter.acquire())
    for _ in range(turns):
        await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])

    await until(nothing_runs)
    async with asyncio.timeout(PATIENCE):
        await take(limiter)


# --- construction, and event loops ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redis": object()}, r"redis must be a redis\.asyncio\.Redis"),
        ({"rate_limit": None}, "rate_limit must be a RateLimit"),
        ({"name": ""}, "name must be"),
        ({"name": "a{b"}, "name must be"),
        ({"name": 5}, "name must be"),
        ({"replicas": 0}, "replicas must be"),
        ({"replicas": True}, "replicas must be"),
        ({"on_unreachable": "ignore"}, "on_unreachable must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": math.inf}, "timeout must be"),
        ({"timeout": "1"}, "timeout must be"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    """If a setting is invalid, the constructor raises an error that names the setting and its rule."""
    arguments: dict[str, Any] = {"redis": Redis(), **settings}
    with pytest.raises(ConfigurationError, match=message):
        RedisLimiter(**arguments)


def test_construction_does_nothing() -> None:
    """A limiter can be made without an event loop and without a Redis."""
    RedisLimiter(Redis.from_url("redis://127.0.0.1:1"))


def test_one_loop(redis_server: RedisServer) -> None:
    """A second event loop may use the limiter only after the first one is closed."""

    async def once(limiter: RedisLimiter, client: Redis) -> None:
        await take(limiter)
        await client.aclose()

    client = Redis.from_url(redis_server.url)
    # If connecting timed out, the socket would be left to the garbage collector, so the time-out is long.
    limiter = RedisLimiter(client, timeout=10.0)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(once(limiter, client))
        for call in (limiter.acquire(), called(limiter.pause_until, 0.0), called(limiter.throttled, 0.0)):
            with pytest.raises(WrongLoopError, match="one limiter for each loop"):
                second.run(call)
    asyncio.run(once(limiter, client))


async def called(method: Any, moment: float) -> None:
    """Call a method that does not wait, inside an event loop."""
    method(moment)


async def test_a_client_that_decodes(redis_server: RedisServer) -> None:
    """If the client decodes answers, the limiter still works."""
    async with Redis.from_url(redis_server.url, decode_responses=True) as client:
        await take(RedisLimiter(client))


async def test_a_cluster() -> None:
    """On a cluster all keys of a limit are on one node; a cluster that does not answer is treated as an outage."""
    # The port through which nodes talk is set, because its default, the client's port plus 10,000, may be too high.
    cluster = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(free_port()))
    with RedisServer(*cluster) as server:
        node: Any
        async with Redis.from_url(server.url) as node:
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_ready() -> bool:
                return b"cluster_state:ok" in await node.execute_command("CLUSTER", "INFO")

            await until(is_ready)
            client = RedisCluster.from_url(server.url)
            try:
                limiter = RedisLimiter(client, on_unreachable="raise", timeout=PATIENCE)
                times = [await take(limiter) for _ in range(60)]
                assert len(await node.keys("*")) == 3
                server.kill()
                with pytest.raises(RedisUnreachableError):
                    await RedisLimiter(client, on_unreachable="raise").acquire()
            finally:
                await client.aclose()
    assert worst_window(times, 1.0) <= 50


async def test_expired_keys_cost_no_wait(redis: Redis) -> None:
    """If processes were idle until their keys expired, they can send immediately."""
    limiter = RedisLimiter(redis, RateLimit(per=PATIENCE))
    await take(limiter)
    # This simulates that minutes have passed.
    age_last_answer(limiter, 200.0)
    await redis.flushall()

    async with asyncio.timeout(PATIENCE / 2):
        await take(limiter)


async def test_a_dead_connection_is_no_outage(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """If the server has closed a pooled connection, the connection is replaced, and nothing is logged."""
    limiter = RedisLimiter(redis, on_unreachable="raise", timeout=PATIENCE)
    await take(limiter)
    async with Redis.from_url(f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}") as other:
        await other.client_kill_filter(_type="normal", skipme=True)

    await take(limiter)
    assert records(caplog) == []


async def test_keys_expire(redis: Redis) -> None:
    """Every key in Redis has an expiry time."""
    await take(RedisLimiter(redis))

    keys = await redis.keys("*")
    assert len(keys) == 3
    assert all([0 < await redis.ttl(key) <= 300 for key in keys])


async def test_a_clock_that_went_back(redis: Redis) -> None:
    """If the clock of Redis goes back, for example after a failover, no process waits for the old time to return."""
    limiter = RedisLimiter(redis)
    await take(limiter)
    hour = 3600 * 10**6
    state = await state_of(redis)
    await redis.hset(KEY, mapping={field: state[field] + hour for field in ("seen", "next")})

    async with asyncio.timeout(PATIENCE):
        await take(limiter)
    assert (await state_of(redis))["seen"] < state["seen"] + hour / 2


# --- failures of Redis ---


async def test_lost_memory_gives_no_second_window(redis: Redis) -> None:
    """If Redis has lost its data, no request is granted for the length of one window."""
    limit = RateLimit(requests=20, per=0.5)
    limiters = [RedisLimiter(redis, limit, timeout=PATIENCE) for _ in range(2)]

    async def flush() -> None:
        for _ in range(3):
            await asyncio.sleep(0.85)
            await redis.flushall()

    times, _ = await asyncio.gather(saturate(limiters, 3.0), flush())

    assert worst_window([at for own in times for at in own], limit.per) <= limit.requests


@pytest.mark.parametrize("on_unreachable", ["share", "wait"])
async def test_a_failover_overfills_no_window(redis: Redis, redis_server: RedisServer, on_unreachable: Any) -> None:
    """If an empty Redis replaces another one, no request is granted for one window, as past requests are unknown."""
    limit = RateLimit(requests=20, per=0.5)
    limiters = [RedisLimiter(redis, limit, on_unreachable=on_unreachable) for _ in range(2)]

    async def fail_over() -> None:
        for _ in range(2):
            await asyncio.sleep(0.85)
            redis_server.restart()

    times, _ = await asyncio.gather(saturate(limiters, 4.0), fail_over())

    assert worst_window([at for own in times for at in own], limit.per) <= limit.requests
    assert max(at for own in times for at in own) >= now() - 1.0


async def test_flushed_scripts(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """If Redis has lost the script, the script is loaded again, and nothing is logged."""
    caplog.set_level(logging.INFO)
    limiter = RedisLimiter(redis, on_unreachable="raise", timeout=PATIENCE)
    for _ in range(3):
        await take(limiter)
        await redis.script_flush()

    assert records(caplog) == []


class Outage:
    """An outage of Redis: kills the server and starts it again; subclasses use other failures."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    async def begin(self) -> None:
        """Kill the server."""
        self.server.kill()

    async def end(self) -> None:
        """Start the server, empty."""
        self.server.start()


class Frozen(Outage):
    """An outage in which the server accepts connections and answers nothing."""

    async def begin(self) -> None:
        """Freeze the server."""
        self.server.freeze()

    async def end(self) -> None:
        """Continue the server."""
        self.server.thaw()


class WrongType(Outage):
    """An outage in which another program has stored a string under the limiter's key."""

    async def begin(self) -> None:
        """Set the key to a string."""
        async with Redis.from_url(self.server.url) as client:
            await client.set(KEY, "mine")

    async def end(self) -> None:
        """Delete the key."""
        async with Redis.from_url(self.server.url) as client:
            await client.delete(KEY)


class ReadOnly(Outage):
    """An outage in which the server has become a replica, so it accepts no writes."""

    async def begin(self) -> None:
        """Make the server a replica of a server that does not exist."""
        async with Redis.from_url(self.server.url) as client:
            await client.replicaof("127.0.0.1", 1)

    async def end(self) -> None:
        """Make the server a primary again."""
        async with Redis.from_url(self.server.url) as client:
            await client.replicaof("NO", "ONE")


OUTAGES = pytest.mark.parametrize("kind", [Outage, Frozen, WrongType, ReadOnly])


@pytest.mark.endurance
@OUTAGES
async def test_an_outage_with_shares(
    redis: Redis, redis_server: RedisServer, kind: type[Outage], caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis fails, each process sends its share; no window exceeds the limit, also after Redis has come back."""
    caplog.set_level(logging.INFO)
    limit = RateLimit(requests=24, per=0.4)
    limiters = [RedisLimiter(redis, limit) for _ in range(3)]
    outage = kind(redis_server)
    granted: list[float] = []
    stop = asyncio.Event()

    async def sender(limiter: RedisLimiter) -> None:
        while not stop.is_set():
            granted.append(await take(limiter))

    def more(count: int) -> Any:
        target = len(granted) + count
        return lambda: len(granted) >= target

    senders = [asyncio.create_task(sender(limiter)) for limiter in limiters for _ in range(3)]
    await until(more(60))
    await outage.begin()
    await until(lambda: len(records(caplog)) == len(limiters))
    await until(more(40))
    await outage.end()
    await until(lambda: len(records(caplog)) == 2 * len(limiters))
    await until(more(60))
    stop.set()
    await asyncio.gather(*senders)

    assert worst_window(granted, limit.per) <= limit.requests
    logged = records(caplog)
    # Each process logs one record for each change. All together send 0.9 of 24 requests in 0.4 s: 54 a second.
    assert all("this process sends 18 requests a second until it does, as one of 3" in text for text in logged[:3])
    assert logged[3:] == ["Redis answers again: the limit is shared as before"] * 3


@pytest.mark.endurance
@OUTAGES
async def test_an_outage_that_is_waited_for(redis: Redis, redis_server: RedisServer, kind: type[Outage]) -> None:
    """If `on_unreachable` is "wait", no request is granted until Redis is back."""
    limiter = RedisLimiter(redis, on_unreachable="wait")
    await take(limiter)
    outage = kind(redis_server)
    await outage.begin()
    waiter = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.5)
    assert not waiter.done()

    await outage.end()
    async with asyncio.timeout(PATIENCE):
        await waiter


@pytest.mark.endurance
@OUTAGES
async def test_an_outage_that_raises(redis: Redis, redis_server: RedisServer, kind: type[Outage]) -> None:
    """If `on_unreachable` is "raise", `acquire` raises `ConnectionError` and does not wait, and works later."""
    limiter = RedisLimiter(redis, on_unreachable="raise")
    await take(limiter)
    outage = kind(redis_server)
    await outage.begin()
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            with pytest.raises(RedisUnreachableError) as caught:
                await limiter.acquire()
            assert isinstance(caught.value, ConnectionError)
            assert isinstance(caught.value, RetailRocketError)
            assert caught.value.__cause__ is caught.value.__context__ is None

    await outage.end()
    async with asyncio.timeout(PATIENCE):
        await granted_at_last(limiter)


async def granted_at_last(limiter: RedisLimiter) -> None:
    """Call `acquire` until it succeeds, because a connection of the old server fails once."""
    while True:
        try:
            await take(limiter)
        except RedisUnreachableError:
            await asyncio.sleep(0.01)
        else:
            return


async def test_one_slow_command_is_no_outage(
    redis: Redis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If only one command takes too long, the process does not send its own share in addition to the shared limit."""
    limiter = RedisLimiter(redis, RateLimit(per=0.4))
    await take(limiter)
    redis_server.freeze()
    waiter = asyncio.create_task(limiter.acquire())
    await until(lambda: len(records(caplog)) == 1)
    redis_server.thaw()
    async with asyncio.timeout(PATIENCE):
        permit = await waiter

    assert isinstance(permit, SharedPermit)
    permit.sent()
    permit.done(answered=True)


async def test_a_pause_outlasts_the_outage(redis: Redis, redis_server: RedisServer) -> None:
    """If the API asks for a pause while Redis is down, requests that are sent without Redis wait, too."""
    limiter = RedisLimiter(redis, RateLimit(per=0.1))
    await take(limiter)
    redis_server.kill()
    end = now() + 1.0
    limiter.pause_until(end)
    limiter.throttled(now())

    async with asyncio.timeout(PATIENCE):
        assert await take(limiter) >= end


async def test_replicas_are_the_configured_ones(
    redis: Redis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If `replicas` is set, a process sends its share of the limit even if Redis has never answered."""
    redis_server.kill()

    async with asyncio.timeout(PATIENCE):
        await take(RedisLimiter(redis, RateLimit(per=0.1), replicas=10))

    assert "sends 45 requests a second until it does, as one of 10" in records(caplog)[0]


async def never_reached(kind: str, server: RedisServer) -> Any:
    """Return a client of a port where no server listens, or a client with a wrong password."""
    if kind == "nothing listens":
        return Redis.from_url(f"redis://127.0.0.1:{free_port()}/0")
    async with Redis.from_url(server.url) as admin:
        await admin.config_set("requirepass", "the-right-one")
    return Redis.from_url(server.url.replace("//", "//:the-wrong-one@"))


@pytest.mark.parametrize("kind", ["nothing listens", "wrong password"])
async def test_a_redis_that_was_never_reached(
    kind: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis has never answered, no request is granted, as the number of processes is unknown; the log says so."""
    async with await never_reached(kind, redis_server) as client:
        limiter = RedisLimiter(client, RateLimit(per=0.1))
        with pytest.raises(RedisUnreachableError, match=r"Redis does not answer: \w+Error"):
            await limiter.ping()
        waiter = asyncio.create_task(take(limiter))
        done, _ = await asyncio.wait([waiter], timeout=1.5)
        assert done == set()
        waiter.cancel()
        await asyncio.wait([waiter])

    [record] = [record for record in caplog.records if record.name == "retailrocket_async"]
    assert record.levelname == "ERROR"
    assert "Redis has never answered" in record.getMessage()
    assert "nothing is sent until it does" in record.getMessage()


async def test_a_redis_that_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    """If Redis answers for the first time, a request that has waited for this gets its permit."""
    server = RedisServer()
    try:
        async with Redis.from_url(server.url) as client:
            limiter = RedisLimiter(client, RateLimit(per=0.1))
            waiter = asyncio.create_task(take(limiter))
            await until(lambda: "never answered" in caplog.text)
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(PATIENCE):
                await waiter
                await limiter.ping()
    finally:
        server.__exit__()

    assert "Redis answers again" not in records(caplog)[0]


async def test_a_redis_that_is_full_at_the_start(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """If Redis is out of memory at the start, this is an outage, and the process sends its share of the limit."""
    await redis.config_set("maxmemory", 1)

    async with asyncio.timeout(PATIENCE):
        await take(RedisLimiter(redis, RateLimit(per=0.1)))

    assert "sends 450 requests a second until it does, as one of 1" in records(caplog)[0]


@pytest.mark.parametrize("on_unreachable", ["share", "raise"])
async def test_no_password_is_shown(on_unreachable: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If the password is wrong, an error is reported, and neither the log nor the error shows the password."""
    caplog.set_level(logging.DEBUG)
    with RedisServer("--requirepass", "the-right-one") as server:
        async with Redis.from_url(server.url.replace("//", "//:the-wrong-one@")) as client:
            limiter = RedisLimiter(client, RateLimit(per=0.1), replicas=1, on_unreachable=on_unreachable)
            async with asyncio.timeout(PATIENCE):
                if on_unreachable == "raise":
                    with pytest.raises(RedisUnreachableError) as caught:
                        await take(limiter)
                    assert "the-" not in "".join(traceback.format_exception(caught.value))
                else:
                    await take(limiter)

    assert "AuthenticationError" in records(caplog)[0]
    assert "the-" not in caplog.text
    assert "the-" not in repr(limiter)


@given(requests=st.integers(1, 200), replicas=st.integers(1, 200), per=st.sampled_from([0.1, 1.0, 60.0]))
def test_shares_keep_the_limit_together(requests: int, replicas: int, per: float) -> None:
    """The shares of all processes together are at most 0.9 of the limit, and no window holds more than the limit."""
    limit = RateLimit(requests=requests, per=per)
    own = share(limit, replicas)

    assert replicas * own.requests / own.per <= 0.9 * requests / per * (1 + 1e-9)
    if replicas <= requests:
        assert own.per >= per
        assert replicas * own.requests <= requests


# --- the state in Redis ---


async def until_reported(client: Any, field: str, above: float = 0.0) -> None:
    """Wait until a field of the limit's state in Redis is above a value."""

    async def is_reported() -> bool:
        return (await state_of(client)).get(field, 0.0) > above

    await until(is_reported)


async def state_of(client: Any) -> dict[str, float]:
    """Return the limit's state in Redis, as a dictionary from field to number."""
    return {field.decode(): float(value) for field, value in (await client.hgetall(KEY)).items()}


async def requests(client: Any) -> list[tuple[bytes, float]]:
    """Return the stored requests: for each, its member and the time (in µs) by which the API has counted it."""
    found: list[tuple[bytes, float]] = await client.zrange(KEY.replace("limit", "requests"), 0, -1, withscores=True)
    return found
