"""Fault tests: each call of a source to its broker's library fails in turn; no message is lost or settled too early.

A source reads a relay's messages from a broker. `tests.support.broken_library` wraps the library's client that the
source uses. A first run with a few messages counts the calls. Then there is one run for each call, in which this call
fails. docs/relay-faults.md says what the relay guarantees.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Connection, ConnectionPool, Redis

from retailrocket_async import Batching, RetryPolicy, View
from retailrocket_async.relay import (
    KafkaSource,
    KafkaTopic,
    NatsSource,
    NatsSubject,
    RedisStream,
    RedisStreamSource,
    Relay,
)
from retailrocket_async.testing import RecordingClient
from tests.contracts.source import bodies_of, numbered
from tests.support.broken_library import ERRORS, Faults, Wrapped
from tests.support.kafka_server import INSTALLED, KafkaServer, kafka_server
from tests.support.nats_server import NatsServer, nats_server
from tests.support.redis_server import RedisServer
from tests.support.relays import all_settled
from tests.support.source_internals import replace_cluster, replace_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# This module takes half a minute, so it runs only once and without measuring coverage.
pytestmark = [pytest.mark.endurance, pytest.mark.leaves_connections("redis-py, nats-py, aiokafka")]

JUNK = b'{"view":{"productId":'
GOOD = 3
_names = itertools.count(1)


class Broker:
    """A message broker with one stream for one test; calls to the broker's library fail if `faults` says so.

    Attributes:
        faults: counts the calls to the library and decides which of them fail.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        self.faults = Faults()
        self.stream = f"faults{next(_names)}"

    def source(self, *, whole: bool = False) -> Any:
        """Return a source that reads the stream. If `whole` is True, none of its library calls fails."""
        raise NotImplementedError

    async def publish(self, *bodies: bytes) -> None:
        """Publish one message for each body."""
        raise NotImplementedError


class OnRedis(Broker):
    """A `Broker` on Redis Streams: sending a command, or reading its answer, may fail."""

    def source(self, *, whole: bool = False) -> Any:
        """Return a source; see `Broker.source`."""
        faults = self.faults

        class Failing(Connection):
            """A connection to Redis; sending a command, or reading its answer, fails if `faults` says so."""

            async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
                await faults.call("send", super().send_packed_command, command, check_health)

            async def read_response(self, *arguments: Any, **options: Any) -> Any:
                return await faults.call("read", super().read_response, *arguments, **options)

        pool: Any = ConnectionPool(
            connection_class=Connection if whole else Failing, host="127.0.0.1", port=self.server.port, protocol=2
        )
        return RedisStreamSource(Redis.from_pool(pool), stream=self.stream, group="relay", name="relay-1", lease=0.5)

    async def publish(self, *bodies: bytes) -> None:
        """Publish one message for each body."""
        async with Redis.from_url(self.server.url) as redis:
            await RedisStream(redis, self.stream).publish(bodies)


class OnNats(Broker):
    """A `Broker` on NATS: connecting, subscribing, publishing, requests, and calls of JetStream may fail."""

    def source(self, *, whole: bool = False) -> Any:
        """Return a source; see `Broker.source`."""
        source = NatsSource(self.server.url, self.stream, ack_wait=0.5)
        if not whole:
            replace_servers(source, lambda servers: Wrapped(servers, self.faults, {"connect": self._connection}))
        return source

    def _connection(self, connection: Any) -> Any:
        wrapped = Wrapped(connection, self.faults, {"subscribe": None, "publish": None, "request": None, "close": None})
        names = ("stream_info", "add_stream", "consumer_info", "add_consumer", "publish", "get_msg")
        wrapped.jetstream = lambda **options: Wrapped(  # type: ignore[attr-defined]
            connection.jetstream(**options), self.faults, dict.fromkeys(names)
        )
        return wrapped

    async def publish(self, *bodies: bytes) -> None:
        """Create the stream if necessary, and publish messages to it."""
        source = self.source(whole=True)
        await source.open()
        await source.aclose()
        async with NatsSubject(self.server.url, self.stream) as subject:
            await subject.publish(bodies)


class OnKafka(Broker):
    """A `Broker` on Kafka: starting, stopping, fetching, committing and producing may fail."""

    def source(self, *, whole: bool = False) -> Any:
        """Return a source; see `Broker.source`."""
        source = KafkaSource(self.server.bootstrap_servers, self.stream, f"relay-{self.stream}", session_timeout=1.2)
        if not whole:
            replace_cluster(source, lambda cluster: _FailingCluster(cluster, self.faults))
        return source

    async def publish(self, *bodies: bytes) -> None:
        """Create the topic and the topic of its dead letters, and publish messages."""
        self.server.create_topic(self.stream, 1)
        self.server.create_topic(f"{self.stream}-dead", 1)
        async with KafkaTopic(self.server.bootstrap_servers, self.stream) as topic:
            await topic.publish(bodies)


class _FailingCluster:
    """A wrapper of `KafkaCluster`; calls to its consumers and producers fail if `faults` says so."""

    def __init__(self, cluster: Any, faults: Faults) -> None:
        self._cluster = cluster
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def producer(self) -> Any:
        """Return a producer whose calls may fail."""
        names = ("start", "stop", "send", "partitions_for")
        return Wrapped(self._cluster.producer(), self._faults, dict.fromkeys(names))

    def consumer(self, group: str, **options: Any) -> Any:
        """Return a consumer whose calls may fail."""
        names = ("start", "stop", "getmany", "commit", "end_offsets", "position")
        return Wrapped(self._cluster.consumer(group, **options), self._faults, dict.fromkeys(names))

    async def committed(self, group: str, partitions: set[Any]) -> Any:
        """Return the committed offsets of a consumer group; this call may fail, too."""
        return await self._faults.call("committed", self._cluster.committed, group, partitions)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """Run one Redis server, which all tests of this module share."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    """Run one NATS server, which all tests of this module share."""
    with nats_server() as server:
        yield server


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    """Run one Kafka broker, which all tests of this module share."""
    with kafka_server() as server:
        yield server


BROKERS = [
    pytest.param((OnRedis, "redis_server"), id="redis", marks=pytest.mark.needs_server("redis-server")),
    pytest.param((OnNats, "nats"), id="nats", marks=pytest.mark.needs_server("nats-server")),
    pytest.param(
        (OnKafka, "kafka"),
        id="kafka",
        marks=pytest.mark.skipif(not INSTALLED, reason="confluent-kafka is not installed"),
    ),
]


@pytest.fixture(params=BROKERS)
def make_broker(request: pytest.FixtureRequest) -> Callable[[], Broker]:
    """Return a function; each of its calls returns a new `Broker` (a stream for one test) on the same server."""
    kind, fixture = request.param
    server = request.getfixturevalue(fixture)
    return lambda: kind(server)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition depends on another process
            await asyncio.sleep(0.005)


@asynccontextmanager
async def relaying(broker: Broker) -> AsyncIterator[tuple[Relay, RecordingClient]]:
    """Run a relay with a client in memory while the `with` block runs, and stop the relay afterwards."""
    async with RecordingClient(batching=Batching(linger=0), retry=RetryPolicy(outlast=True)) as client:
        relay = Relay(broker.source(), client, grace=5.0)
        running = asyncio.create_task(relay.run())
        try:
            yield relay, client
        finally:
            relay.stop()
            await running


def products(client: RecordingClient) -> set[int]:
    """Return the product numbers of the views that the relay has tracked."""
    return {event.product_id for event in client.of(View)}


async def calls_of_a_run(make_broker: Callable[[], Broker]) -> int:
    """Run a relay without failures until all messages are settled. Return how often it called the broker's library."""
    broker = make_broker()
    await broker.publish(*numbered(GOOD), JUNK)
    async with relaying(broker) as (relay, client):
        await until(lambda: len(products(client)) == GOOD and relay.stats().dead != {})
        await until(lambda: all_settled(relay, GOOD + 1))
        return broker.faults.calls


async def run_with(
    make_broker: Callable[[], Broker], at: int, error: Callable[[], BaseException], *, late: bool, permanent: bool
) -> None:
    """Run a relay in which library call number `at` fails; check that no message is lost and that the relay recovers.

    If `late` is True, the call fails after its work is done. If `permanent` is True, all later calls fail as well,
    until the relay has become unready.
    """
    broker = make_broker()
    await broker.publish(*numbered(GOOD), JUNK)
    broker.faults.arm(at, error, late=late, permanent=permanent)
    async with relaying(broker) as (relay, client):
        if permanent:
            await until(lambda: broker.faults.failed >= 2 and relay.unready is not None)
            # From here on all calls succeed. The broker still has every message that is not settled yet.
            broker.faults.disarm()
        await until(lambda: len(products(client)) == GOOD)
        await until(lambda: relay.stats().dead != {} and relay.unready is None)
        await until(lambda: all_settled(relay, GOOD + 1))
    source = broker.source(whole=True)
    await source.open()
    try:
        letters = await source.list_dead(99)
        assert set(bodies_of(letters)) == {JUNK}, (at, broker.faults.names)
        # There is one dead letter. Kafka may have several, because Kafka does not recognize a duplicate.
        assert len(letters) == 1 or isinstance(broker, OnKafka)
    finally:
        await source.aclose()


MOST_AT_ONCE = 8


async def for_each(numbers: range, run: Callable[[int], Any]) -> None:
    """Call `run` for each number; at most `MOST_AT_ONCE` calls run at the same time."""
    slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            try:
                await run(number)
            except BaseException as error:
                error.add_note(f"with call {number} failing")
                raise

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_each_call_fails_once(make_broker: Callable[[], Broker], *, late: bool) -> None:
    """If any library call fails once, before or after its work, each message is delivered or becomes a dead letter."""
    calls = await calls_of_a_run(make_broker)

    await for_each(range(calls), lambda at: run_with(make_broker, at, ERRORS["OSError"], late=late, permanent=False))


@pytest.mark.parametrize("error", ERRORS)
async def test_each_call_fails_for_a_while(make_broker: Callable[[], Broker], error: str) -> None:
    """If all library calls fail for a while, the relay is unready during this time, recovers, and loses no message."""
    calls = await calls_of_a_run(make_broker)

    await for_each(range(calls), lambda at: run_with(make_broker, at, ERRORS[error], late=False, permanent=True))


def test_the_page_names_tests_that_exist() -> None:
    """Every test that docs/relay-faults.md names exists."""
    root = Path(__file__).parents[1]
    page = (root.parent / "docs" / "relay-faults.md").read_text("utf-8")
    there = "".join(
        path.read_text("utf-8") for path in [*root.glob("relay/test_*.py"), root / "contracts" / "source.py"]
    )
    named = set(re.findall(r"`(test_\w+)`", page))

    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in there} == set()
