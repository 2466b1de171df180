"""Tests of `RedisStreamSource` (reads messages) and `RedisStream` (publishes messages) on a real redis-server."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Codec,
    ConfigurationError,
    EventValidationError,
    RetryPolicy,
    View,
)
from retailrocket_async.emulator import Settings, running_emulator
from retailrocket_async.relay import (
    Lag,
    Message,
    Publisher,
    RedisStream,
    RedisStreamSource,
    Relay,
    publish_envelopes,
    source_from_url,
)
from tests.contracts.source import SourceContract, bodies_of, numbered
from tests.support.cancelling import cancel_everywhere
from tests.support.redis_server import RedisServer, redis_server
from tests.support.relays import all_settled
from tests.support.source_internals import handed_out

__all__ = ["redis_server"]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

pytestmark = pytest.mark.needs_server("redis-server")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Run one Redis server for all tests of this module."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    """Yield a client of the server, and empty the server's database before the test."""
    redis: Any = Redis.from_url(server.url)
    await redis.flushall()
    yield redis
    await redis.aclose()


class TestRedisStreamSource(SourceContract):
    """Run the tests that every source must pass on a `RedisStreamSource`."""

    lease = 1.5

    @pytest.fixture(autouse=True)
    def _redis(self, server: RedisServer, redis: Redis) -> None:
        self.server = server
        self.stream = RedisStream(redis, "events")

    async def make(self, name: str = "relay-1", lease: float | None = None) -> RedisStreamSource:
        """Return a source of this test's stream."""
        options = f"stream=events&group=relay&lease={lease or self.lease}"
        return RedisStreamSource.from_url(f"{self.server.url}?{options}", name=name)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's stream."""
        await self.stream.publish(bodies)

    # --- tests for Redis only ---

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_either_protocol(self, redis: Redis, protocol: int) -> None:
        """If the caller passes a Redis client, the source works with it in both versions of the Redis protocol."""
        client: Any = Redis.from_url(self.server.url, protocol=protocol)
        source = RedisStreamSource(client, stream="events", group="relay", name="relay-1")
        self._sources.append(source)
        await source.open()
        await self.publish(numbered(5))
        found = await self.collect(source, 5)
        assert bodies_of(found) == numbered(5)
        await source.settle(found[:3], [(found[3], "rejected: HTTP 400")])
        assert (await source.lag()).pending == 1
        await self.crash(source)
        other = await self.source("relay-1")
        assert bodies_of(await self.collect(other, 1)) == numbered(1, first=4)

    async def test_fields_of_other_producers(self, redis: Redis) -> None:
        """The body is the field `envelope`, else `data`; without both, it lists all fields and is no valid event."""
        entries: list[Any] = [
            {"other": "1", "envelope": "a"},
            {"data": "b", "other": "1"},
            {"data": "no", "envelope": "c"},
            {"other": b"\xff", "more": "x"},
        ]
        for entry in entries:
            await redis.xadd("events", entry)
        found = await self.collect(await self.source(), 4)

        assert bodies_of(found)[:3] == [b"a", b"b", b"c"]
        assert json.loads(found[3].body) == {"neither envelope nor data": {"other": "\\xff", "more": "x"}}
        with pytest.raises(EventValidationError):
            Codec().decode(found[3].body)

    async def test_ids_of_other_producers(self, redis: Redis) -> None:
        """If an entry's id was not made from a clock, its message has no time of publication."""
        await redis.xadd("events", {"envelope": "a"}, id="5-1")
        [message] = await self.collect(await self.source(), 1)

        assert (message.id, message.published_at) == ("5-1", None)

    async def test_trimmed_before_it_was_delivered(self, redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
        """If entries are trimmed before they are settled, the log reports them, and other messages are not delayed."""
        await self.publish(numbered(3))
        first = await self.source()
        await self.collect(first, 3)
        await self.crash(first)
        await redis.xtrim("events", maxlen=1, approximate=False)
        again = await self.source()
        assert bodies_of(await self.all_of(again, numbered(1, first=2))) == numbered(1, first=2)
        await self.nothing_left(again)
        assert (await again.lag()).pending == 1
        assert "2 messages were trimmed from the stream before they were delivered" in caplog.text

    async def test_trimmed_entries_are_pending_no_more(self, redis: Redis) -> None:
        """If the source reads a trimmed entry, this entry is no longer pending, even if its lease is not over."""
        await self.publish(numbered(3))
        first = await self.source(lease=600.0)
        await self.collect(first, 3)
        await self.crash(first)
        await redis.xtrim("events", maxlen=1, approximate=False)
        again = await self.source(lease=600.0)

        assert bodies_of(await self.collect(again, 1)) == numbered(1, first=2)
        assert (await again.lag()).pending == 1

    async def test_nothing_settled_is_remembered(self) -> None:
        """A source stores data only for messages that it has returned and that are not settled or released."""
        source = await self.source()
        for first in range(0, 60, 20):
            await self.publish(numbered(20, first))
            found = await self.collect(source, 20)
            assert handed_out(source) == 20
            await source.settle(found[:10], [(message, "rejected: HTTP 400") for message in found[10:15]])
            await source.release(found[15:])
            assert handed_out(source) == 0
            # The messages were released, so the source stores data for them only after it has fetched them again.
            await source.settle(await self.all_of(source, numbered(5, first + 15)), [])
            assert handed_out(source) == 0

    async def test_settled_entries_are_deleted_on_demand(self, redis: Redis) -> None:
        """If `delete_settled` is set, settled entries are deleted from the stream; otherwise no entry is deleted."""
        url = f"{self.server.url}?stream=events"
        for delete, left in (("no", 4), ("yes", 0)):
            await redis.flushall()
            source = RedisStreamSource.from_url(f"{url}&delete_settled={delete}", name="relay-1")
            self._sources.append(source)
            await source.open()
            await self.publish(numbered(4))
            found = await self.collect(source, 4)
            await source.settle(found[:2], [(message, "rejected: HTTP 400") for message in found[2:]])
            assert await redis.xlen("events") == left
            assert len(await source.list_dead(10)) == 2
            assert await source.lag() == Lag(waiting=0, pending=0)

    async def test_a_group_that_is_gone(self, redis: Redis) -> None:
        """If the group is missing, for example after a restart without data, `open` creates it again."""
        source = await self.source()
        await redis.flushall()
        await self.publish(numbered(2))
        with pytest.raises(ResponseError, match="NOGROUP"):
            await source.fetch(10, 0.1)
        await source.open()
        assert bodies_of(await self.collect(source, 2)) == numbered(2)

    async def test_a_key_that_is_no_stream(self, redis: Redis) -> None:
        """If the key is not a stream, `open` raises `ConfigurationError`."""
        await redis.set("events", "text")
        source = await self.make()
        self._sources.append(source)
        with pytest.raises(ConfigurationError, match="'events' holds no stream"):
            await source.open()

    async def test_a_stream_with_a_bound(self, redis: Redis) -> None:
        """If `max_len` is set, the stream is trimmed to about that length; otherwise it is not trimmed."""
        await RedisStream(redis, "bounded", max_len=100).publish(numbered(1000))
        await self.publish(numbered(1000))
        assert 100 <= await redis.xlen("bounded") < 400
        assert await redis.xlen("events") == 1000

    async def test_events_and_envelopes_are_published(self) -> None:
        """`publish_envelopes` encodes events, publishes encoded ones unchanged, and returns how many it published."""
        events = [View(session_external_id="a", product_id=number) for number in range(7)]
        given = [event if number % 2 else Codec().encode(event) for number, event in enumerate(events)]
        assert await publish_envelopes(self.stream, given, batch=3) == 7
        assert await publish_envelopes(self.stream, []) == 0
        found = await self.collect(await self.source(), 7)
        assert [Codec().decode(message.body) for message in found] == [
            Codec().decode(Codec().encode(e)) for e in events
        ]

    async def test_many_dead_letters(self) -> None:
        """If there are more dead letters than fit into one Redis command, all can be listed, replayed and removed."""
        await self.publish(numbered(1200))
        source = await self.source()
        found = await self.collect(source, 1200)
        await source.settle([], [(message, "rejected: HTTP 400") for message in found])
        assert len(await source.list_dead(5000)) == 1200
        assert await source.replay_dead(700) == 700
        assert await source.purge_dead(5000) == 500
        assert bodies_of(await self.collect(source, 700)) == numbered(700)

    async def test_frozen_server(self) -> None:
        """If the server hangs, calls fail within their time-out, and no message is lost."""
        await self.publish(numbered(5))
        url = f"{self.server.url}?stream=events&socket_timeout=0.5&socket_connect_timeout=0.5"
        source = RedisStreamSource.from_url(url, name="relay-1")
        self._sources.append(source)
        await source.open()
        self.server.freeze()
        try:
            with pytest.raises(RedisError):
                await source.fetch(10, 0.1)
        finally:
            self.server.thaw()
        await source.open()
        assert bodies_of(await self.all_of(source, numbered(5))) == numbered(5)


class TestCancelled:
    """Tests that cancel a method again and again, each time at a later await; no message may be lost."""

    @pytest.fixture(autouse=True)
    async def _source(self, server: RedisServer, redis: Redis) -> AsyncIterator[None]:
        self.redis: Any = redis
        self.stream = RedisStream(redis, "events")
        self.source = RedisStreamSource.from_url(f"{server.url}?stream=events", name="relay-1")
        yield
        await self.source.aclose()

    async def collect(self, count: int) -> list[Message]:
        """Fetch until there are `count` messages."""
        found: list[Message] = []
        async with asyncio.timeout(60):
            while len(found) < count:
                found += await self.source.fetch(count - len(found), 0.2)
        return found

    async def test_open_and_fetch(self) -> None:
        """If `open` is cancelled, it can be repeated; after a cancelled `fetch`, the next one returns the messages."""
        await cancel_everywhere(self.source.open)
        await self.stream.publish(numbered(20))
        found = list(await cancel_everywhere(lambda: self.source.fetch(5, 1.0)))
        found += await self.collect(15)
        assert sorted(bodies_of(found)) == sorted(numbered(20))
        assert list(await self.source.fetch(5, 0.0)) == []

    async def test_settle(self) -> None:
        """If `settle` is cancelled and called again, all messages are settled, and each dead letter is stored once."""
        await self.source.open()
        await self.stream.publish(numbered(20))
        found = await self.collect(20)
        dead = [(message, "rejected: HTTP 400") for message in found[10:]]
        await cancel_everywhere(lambda: self.source.settle(found[:10], dead))
        assert await self.source.lag() == Lag(waiting=0, pending=0)
        assert bodies_of(await self.source.list_dead(100)) == numbered(10, first=10)

    async def test_the_rest(self) -> None:
        """If any other method is cancelled, each message is still waiting, fetched, settled or a dead letter."""
        await self.source.open()
        await self.stream.publish(numbered(200))
        found = await self.collect(200)
        await self.source.settle([], [(message, "rejected: HTTP 400") for message in found[100:]])
        await cancel_everywhere(lambda: self.source.extend(found))
        await cancel_everywhere(self.source.lag)
        await cancel_everywhere(lambda: self.source.list_dead(9))
        await cancel_everywhere(lambda: self.source.replay_dead(1))
        # Cancelled replays have published an unknown number of dead letters, each once, and have removed exactly these.
        left = len(await self.source.list_dead(1000))
        assert await self.redis.xlen("events") == 200 + 100 - left
        await cancel_everywhere(lambda: self.source.purge_dead(1))
        assert len(await self.source.list_dead(1000)) < left
        await cancel_everywhere(lambda: self.source.release(found[:100]))
        await cancel_everywhere(lambda: self.stream.publish(numbered(1, first=500)))
        await self.source.open()
        again: set[bytes] = set()
        async with asyncio.timeout(60):
            while not again >= {*numbered(100), *numbered(1, first=500)}:
                again |= {*bodies_of(await self.source.fetch(500, 0.2))}


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.01, 0.03, 0.05, 0.08, 0.12, 0.2])
async def test_a_relay_that_is_cancelled(redis_server: RedisServer, moment: float) -> None:
    """If a relay is cancelled at any moment, the next relay delivers the remaining messages."""

    async def disturb(emulator: Any, relay: Relay) -> None:
        await asyncio.sleep(moment)
        first = relay_of(redis_server, emulator, "relay-2")
        running = asyncio.create_task(first.run())
        await asyncio.sleep(moment)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    stats, recorded, lag = await relay_through(redis_server, disturb)
    assert recorded.keys() == set(range(2000))
    assert recorded.total() - 2000 <= 300
    assert lag == Lag(waiting=0, pending=0)
    assert stats.dead == {}


def test_a_stream_is_a_publisher(redis: Redis) -> None:
    """`RedisStream` is a `Publisher`."""
    assert isinstance(RedisStream(redis, "events"), Publisher)


SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:s3cret@h/0", "must name the stream"),
        ("redis://:s3cret@h/0?stream=", "stream must be there once, and not empty"),
        ("redis://:s3cret@h/0?stream=a&stream=b", "stream must be there once, and not empty"),
        ("redis://:s3cret@h/0?stream=a&lease=soon", "lease must be seconds"),
        ("redis://:s3cret@h/0?stream=a&lease=0", "lease must be a number of seconds, 0.1 or more"),
        ("redis://:s3cret@h/0?stream=a&lease=nan", "lease must be a number of seconds, 0.1 or more"),
        ("redis://:s3cret@h/0?stream=a&delete_settled=1", "delete_settled must be yes or no"),
        ("redis://:s3cret@h/0?stream=a&dead=a", "dead must be another key"),
        ("redis://:s3cret@h/0?stream=a&nonsense=1", None),
        ("redis://:s3cret@h:port/0?stream=a", "not one that redis-py can read"),
        ("redis://:s3cret@[h/0?stream=a", "malformed"),
        ("redis://:s3cret@h/0?stream=a&socket_timeout=soon", "not one that redis-py can read"),
    ],
)
def test_wrong_addresses(url: str, message: str | None) -> None:
    """If an address is invalid, neither the error nor its cause shows the password."""
    if message is None:
        source_from_url(url, name="relay-1")
        return
    with pytest.raises(ConfigurationError, match=message) as caught:
        source_from_url(url, name="relay-1")
    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(url, "")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "amqp://x", "http://user:s3cret@h"])
def test_unknown_brokers(scheme: str) -> None:
    """If the broker in an address is unknown, the error lists the known brokers."""
    with pytest.raises(ConfigurationError, match="redis, rediss, unix, kafka") as caught:
        source_from_url(scheme, name="relay-1")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": ""}, "stream must be a str"),
        ({"group": ""}, "group must be a str"),
        ({"name": ""}, "name must be a str"),
        ({"dead": ""}, "dead must be a str"),
        ({"lease": "60"}, "lease must be a number"),
        ({"lease": True}, "lease must be a number"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """If an option is invalid, the constructor raises an error that names the option."""
    with pytest.raises(ConfigurationError, match=message):
        RedisStreamSource(Redis(), **({"stream": "a", "group": "g", "name": "n"} | options))


def test_a_client_that_decodes_answers() -> None:
    """If the client decodes answers, the constructor raises, because envelopes are bytes."""
    with pytest.raises(ConfigurationError, match="decode_responses=False"):
        RedisStreamSource(Redis(decode_responses=True), stream="a", group="g", name="n")


@pytest.mark.parametrize("options", [{"max_len": 0}, {"max_len": True}, {"stream": ""}])
def test_wrong_streams(options: dict[str, Any]) -> None:
    """If a stream's option is invalid, the constructor raises."""
    with pytest.raises(ConfigurationError):
        RedisStream(Redis(), **({"stream": "a"} | options))


@pytest.mark.parametrize("batch", [0, -1, True, "1"])
async def test_wrong_batches(batch: int) -> None:
    """If `batch` is not a whole number above 0, `publish_envelopes` raises."""
    with pytest.raises(ConfigurationError, match="batch must be"):
        await publish_envelopes(RedisStream(Redis(), "a"), [], batch=batch)


async def relay_through(server: RedisServer, disturb: Any, *, lease: float = 2.0) -> tuple[Any, Counter[int], Any]:
    """Relay 2,000 events to an emulator while `disturb` runs.

    Return the relay's statistics, how often each product was recorded, and the source's final lag.
    """
    publisher: Any = Redis.from_url(server.url)
    await publish_envelopes(
        RedisStream(publisher, "events"),
        [View(session_external_id=f"v{number % 50}", product_id=number) for number in range(2000)],
    )
    await publisher.aclose()
    async with running_emulator(Settings(limit=None, batch_latency=0.01)) as emulator:
        relay = relay_of(server, emulator, "relay-1", lease)
        running = asyncio.create_task(relay.run())

        await disturb(emulator, relay)
        await until(lambda: len(products(emulator)) == 2000 and relay.unready is None)
        # `disturb` may have let another relay deliver some of the messages.
        await until(lambda: all_settled(relay, 0))
        # Messages that another relay has fetched and not settled are delivered when their lease is over.
        async with asyncio.timeout(30):
            while (lag := await relay.lag()) != Lag(waiting=0, pending=0):  # noqa: ASYNC110 - brokers have no event
                await asyncio.sleep(0.02)
        relay.stop()
        assert await running
        return relay.stats(), products(emulator), lag


def relay_of(server: RedisServer, emulator: Any, name: str, lease: float = 2.0) -> Relay:
    """Return a relay that reads from a Redis server and sends small batches to an emulator."""
    client = AsyncTrackingClient(
        "dev-api-key",
        "dev-partner",
        base_url=emulator.url,
        rate_limit=None,
        batching=Batching(max_events=50),
        retry=RetryPolicy(outlast=True, initial_backoff=0.1, max_backoff=0.2),
    )
    source = RedisStreamSource.from_url(f"{server.url}?stream=events&lease={lease}", name=name)
    return Relay(source, client, batch=50, window=300)


def products(emulator: Any) -> Counter[int]:
    """Return how often each product was recorded."""
    return Counter(record.fields["productId"] for record in emulator.events())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after 60 seconds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition depends on another process
            await asyncio.sleep(0.02)


async def test_a_broker_that_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """If the server is killed and restarted, no event is lost, few are sent twice, and the failure is logged once."""
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:

        async def disturb(emulator: Any, relay: Relay) -> None:
            await until(lambda: emulator.stats()["total_events"] >= 500)
            await asyncio.to_thread(server.kill)
            await until(lambda: relay.unready is not None)
            await asyncio.to_thread(server.start)

        stats, recorded, lag = await relay_through(server, disturb)
    assert recorded.keys() == set(range(2000))
    assert lag == Lag(waiting=0, pending=0)
    assert recorded.total() - 2000 <= 300
    assert stats.dead == {}
    logged = [record.getMessage().split(",")[0].split(":")[0] for record in caplog.records]
    assert logged.count("the broker is lost") == logged.count("the broker is back") == 1


@pytest.mark.untraced
@pytest.mark.parametrize("kind", [{"status": 500}, {"status": 401}, {"status": 429}, {}])
async def test_an_api_that_fails_for_a_while(redis_server: RedisServer, kind: dict[str, int]) -> None:
    """If the API fails, refuses the key or does not answer for a while, every event is recorded exactly once."""

    async def disturb(emulator: Any, relay: Relay) -> None:
        await until(lambda: emulator.stats()["total_events"] >= 500)
        # The failure lasts 2.5 seconds, which is longer than the lease of one second.
        if kind:
            emulator.fail_with("status", times=None, **kind)
        else:
            emulator.fail_with("reset_before", times=None)
        await asyncio.sleep(2.5)
        assert relay.stats().in_hand <= 300
        emulator.faults.clear()

    stats, recorded, _ = await relay_through(redis_server, disturb, lease=1.0)
    assert recorded == Counter(range(2000))
    assert stats.dead == {}
    assert stats.redelivered == 0
