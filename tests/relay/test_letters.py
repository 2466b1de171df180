"""Tests of dead letters on real brokers that refuse to store them: none is lost, and later messages do not wait."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from retailrocket_async import AsyncTrackingClient, Batching, ConfigurationError, RetryPolicy
from retailrocket_async.emulator import Settings, running_emulator
from retailrocket_async.relay import (
    KafkaSource,
    KafkaTopic,
    Message,
    NatsSource,
    NatsSubject,
    RedisStream,
    RedisStreamSource,
    Relay,
)
from retailrocket_async.relay._kafka.cluster import visitor_of
from tests.contracts.source import bodies_of, numbered
from tests.support.kafka_server import INSTALLED, KafkaServer, kafka_server
from tests.support.nats_server import NatsServer, nats_server
from tests.support.redis_server import RedisServer, free_port
from tests.support.relays import all_settled
from tests.support.source_internals import (
    dead_stream_of,
    jetstream_of,
    keep_dead,
    knows,
    rebalance,
    servers_of,
    stream_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.leaves_connections("redis-py, nats-py, aiokafka")

REASON = "rejected: HTTP 400"
JUNK = b'{"view":{"productId":"'

needs_redis = pytest.mark.needs_server("redis-server")
needs_nats = pytest.mark.needs_server("nats-server")
needs_kafka = pytest.mark.skipif(not INSTALLED, reason="confluent-kafka is not installed")

_names = itertools.count(1)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition depends on another process
            await asyncio.sleep(0.02)


async def fetch_all(source: Any, count: int) -> list[Message]:
    """Fetch until there are `count` messages."""
    found: list[Message] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += await source.fetch(count - len(found), 0.2)
    return found


@asynccontextmanager
async def relaying(source: Any, ends: tuple[bool, ...] = (True,)) -> AsyncIterator[tuple[Relay, Any]]:
    """Run a relay that sends to an emulator while the block runs; `ends` lists the allowed results of `Relay.run`."""
    async with running_emulator(Settings(limit=None)) as emulator:
        client = AsyncTrackingClient(
            "dev-api-key",
            "dev-partner",
            base_url=emulator.url,
            rate_limit=None,
            batching=Batching(),
            retry=RetryPolicy(outlast=True),
        )
        relay = Relay(source, client, grace=5.0)
        running = asyncio.create_task(relay.run())
        try:
            yield relay, emulator
        finally:
            relay.stop()
            assert await running in ends


def junk(size: int) -> bytes:
    """Return a body of `size` bytes that is not a valid event."""
    return JUNK + b"x" * (size - len(JUNK))


def check_shortened(letter: Any, body: bytes, most: int) -> None:
    """Check that a dead letter has only the beginning of `body`, and the size and hash of the whole `body`."""
    assert 0 <= len(letter.body) < most
    assert body.startswith(letter.body)
    assert letter.size == len(body)
    assert letter.sha256 == hashlib.sha256(body).hexdigest()


# --- Redis Streams ---

COMMANDS = (
    "+xreadgroup +xautoclaim +xgroup|create +xinfo|groups +xack +xpending +xclaim +xadd +evalsha +script|load +client"
)
"""The commands that a relay needs, according to the documentation."""

FOR_PEOPLE = "+xrange +xdel +multi +exec"
"""The commands that `relay-dead` and `delete_settled` need in addition, according to the documentation."""


@pytest.fixture(scope="module")
def redis_of_all() -> Iterator[RedisServer]:
    """Run one Redis server, which all tests of this module share."""
    with RedisServer("--enable-debug-command", "yes") as server:
        yield server


@pytest.fixture
async def redis(redis_of_all: RedisServer) -> AsyncIterator[Any]:
    """Yield a client of the Redis server. After the test, reset the server's data and settings."""
    async with Redis.from_url(redis_of_all.url) as client:
        yield client
        await client.config_set("maxmemory", 0)
        await client.config_set("proto-max-bulk-len", 512 * 1024 * 1024)
        await client.flushall()


def on_redis(server: RedisServer, user: str = "", **options: Any) -> RedisStreamSource:
    """Return a source that reads the Redis stream `events`."""
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return RedisStreamSource.from_url(f"{server.url.replace('//', f'//{user}')}?stream=events{more}", name="relay-1")


async def allow(redis: Any, rules: str) -> None:
    """Allow the Redis user `relay` to use only the commands in `rules`, and only on the relay's two keys."""
    await redis.execute_command(
        "ACL", "SETUSER", "relay", "reset", "on", ">pw", "~events", "~events:dead", *rules.split()
    )


@needs_redis
class TestRedisStreams:
    """Tests of a relay on Redis Streams."""

    @pytest.mark.parametrize("delete", ["no", "yes"])
    async def test_commands_that_a_relay_needs(self, redis: Any, redis_of_all: RedisServer, delete: str) -> None:
        """A user with only the documented commands can run a relay, take messages over, and manage dead letters."""
        await allow(redis, COMMANDS + (" +xdel" if delete == "yes" else ""))
        await RedisStream(redis, "events").publish([*numbered(3), junk(50)])
        async with relaying(on_redis(redis_of_all, "relay:pw@", delete_settled=delete, lease=0.5)) as (relay, emulator):
            await until(lambda: len({record.fields["productId"] for record in emulator.events()}) == 3)
            await until(lambda: all_settled(relay, 4))
            # The relay takes messages over every half a second, which needs further commands.
            await asyncio.sleep(0.6)
            assert relay.unready is None
            assert (await relay.lag()).pending == 0

        await allow(redis, f"{COMMANDS} {FOR_PEOPLE}")
        source = on_redis(redis_of_all, "relay:pw@")
        await source.open()
        assert bodies_of(await source.list_dead(9)) == [junk(50)]
        assert await source.replay_dead(9) == 1
        await source.settle([], [(message, REASON) for message in await fetch_all(source, 1)])
        assert await source.purge_dead(9) == 1
        await source.aclose()

    @pytest.mark.parametrize("refusal", ["no permission", "wrong type", "no memory"])
    async def test_letter_that_is_refused(self, redis: Any, redis_of_all: RedisServer, refusal: str) -> None:
        """If Redis refuses a dead letter, its message is not acknowledged, and later messages are delivered.

        Meanwhile the relay is unready and says why. When Redis accepts dead letters again, this one is stored once.
        """
        await RedisStream(redis, "events").publish([junk(50), *numbered(2)])
        await redis.xgroup_create("events", "relay", id="0")
        if refusal == "no permission":
            await allow(redis, COMMANDS.replace(" +xadd", ""))
        elif refusal == "wrong type":
            await redis.set("events:dead", "text")
        else:
            await redis.config_set("maxmemory", 1)
        user = "relay:pw@" if refusal == "no permission" else ""
        async with relaying(on_redis(redis_of_all, user)) as (relay, emulator):
            await until(lambda: emulator.stats()["total_events"] == 2)
            await until(lambda: (relay.unready or "").startswith("dead letters cannot be kept: "))
            assert relay.stats().connected is False
            assert (await redis.xpending("events", "relay"))["pending"] >= 1
            if refusal == "no permission":
                await allow(redis, COMMANDS)
            elif refusal == "wrong type":
                await redis.delete("events:dead")
            else:
                await redis.config_set("maxmemory", 0)
            await until(lambda: relay.unready is None and all_settled(relay, 3))
            assert (await redis.xpending("events", "relay"))["pending"] == 0

        [(_, letter)] = await redis.xrange("events:dead")
        assert letter[b"envelope"] == junk(50)

    async def test_letter_whose_message_cannot_be_acknowledged(self, redis: Any, redis_of_all: RedisServer) -> None:
        """If acknowledging a message fails several times, there is still only one dead letter of this message."""
        await RedisStream(redis, "events").publish([junk(50)])
        await allow(redis, f"{COMMANDS} +xdel".replace(" +xack", ""))
        source = on_redis(redis_of_all, "relay:pw@")
        await source.open()
        [message] = await fetch_all(source, 1)
        for _ in range(3):
            with pytest.raises((NoPermissionError, ResponseError)):
                await source.settle([], [(message, REASON)])
        assert await redis.xlen("events:dead") == 0
        await allow(redis, COMMANDS)
        await source.settle([], [(message, REASON)])

        assert await redis.xlen("events:dead") == 1
        await source.aclose()

    async def test_starts_without_memory(self, redis: Any, redis_of_all: RedisServer) -> None:
        """If Redis is at its memory limit and the group exists, the relay starts and settles messages."""
        await RedisStream(redis, "events").publish(numbered(200))
        await redis.xgroup_create("events", "relay", id="0")
        await redis.config_set("maxmemory", 1)
        async with relaying(on_redis(redis_of_all, delete_settled="yes")) as (_, emulator):
            await until(lambda: emulator.stats()["total_events"] == 200)
        await redis.config_set("maxmemory", 0)

        assert await redis.xlen("events") == 0

    async def test_without_memory_and_without_a_group(self, redis: Any, redis_of_all: RedisServer) -> None:
        """If Redis is out of memory and cannot create the group, `open` raises Redis's error and can be repeated."""
        await redis.config_set("maxmemory", 1)
        source = on_redis(redis_of_all)
        with pytest.raises(RedisError, match="maxmemory"):
            await source.open()
        await redis.config_set("maxmemory", 0)
        await source.open()
        await source.aclose()

    async def test_body_that_is_too_large(self, redis: Any, redis_of_all: RedisServer) -> None:
        """If a body is too large for Redis, its dead letter is shortened, and can be purged but not replayed."""
        body = junk(3_000_000)
        await RedisStream(redis, "events").publish([body, junk(50)])
        source = on_redis(redis_of_all)
        await source.open()
        found = await fetch_all(source, 2)
        await redis.config_set("proto-max-bulk-len", 1024 * 1024)
        await source.settle([], [(message, REASON) for message in found])
        letters = await source.list_dead(9)

        check_shortened(letters[0], body, 1024 * 1024)
        assert (letters[1].body, letters[1].size, letters[1].sha256) == (junk(50), None, "")
        assert await source.replay_dead(9) == 1
        assert await source.list_dead(9) == letters[:1]
        assert await source.purge_dead(9) == 1
        assert (await source.lag()).pending == 0
        await source.aclose()

    async def test_many_large_bodies(self, redis: Any, redis_of_all: RedisServer) -> None:
        """If dead letters are too large for one command, they are sent in several commands."""
        await RedisStream(redis, "events").publish([junk(1_000_000)] * 20)
        source = on_redis(redis_of_all)
        await source.open()
        await source.settle([], [(message, REASON) for message in await fetch_all(source, 20)])

        assert [len(letter.body) for letter in await source.list_dead(99)] == [1_000_000] * 20
        await source.aclose()

    async def test_a_cluster_is_refused(self) -> None:
        """A client of a Redis Cluster is refused at construction, and an address of a cluster is refused by `open`."""
        cluster = (
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-port",
            str(free_port()),
        )
        with RedisServer(*cluster) as server:
            client = RedisCluster.from_url(server.url)
            for make in (
                lambda: RedisStreamSource(client, stream="events", group="g", name="n"),  # type: ignore[arg-type]
                lambda: RedisStream(client, "events"),  # type: ignore[arg-type]
            ):
                with pytest.raises(ConfigurationError, match="does not read from a Redis Cluster"):
                    make()
            await client.aclose()
            for protocol in (2, 3):
                source = RedisStreamSource.from_url(f"{server.url}?stream=events&protocol={protocol}", name="n")
                with pytest.raises(ConfigurationError, match="does not read from a Redis Cluster"):
                    await source.open()
                await source.aclose()

    def test_another_client_is_refused(self) -> None:
        """If the client is no asyncio client of redis-py, the constructor raises."""
        from redis import Redis as Blocking

        with pytest.raises(ConfigurationError, match=r"must be a redis\.asyncio\.Redis"):
            RedisStreamSource(Blocking(), stream="events", group="g", name="n")  # type: ignore[arg-type]


# --- NATS JetStream ---


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    """Run one NATS server, which all tests of this module share."""
    with nats_server() as server:
        yield server


@pytest.fixture
async def on_nats(nats: NatsServer) -> AsyncIterator[Any]:
    """Yield an open source; its stream is used by this test only."""
    source = NatsSource(nats.url, f"letters{next(_names)}", ack_wait=60)
    await source.open()
    yield source
    await source.aclose()


async def publish_nats(source: NatsSource, *bodies: bytes) -> None:
    """Publish to a source's stream."""
    async with NatsSubject(list(servers_of(source).urls), stream_of(source)) as subject:
        await subject.publish(bodies)


@needs_nats
class TestNats:
    """Tests of a relay on NATS JetStream."""

    async def test_stream_that_was_made_anew(self, on_nats: NatsSource) -> None:
        """If a stream is created again, a new message gets a dead letter although its number was used before."""
        for body in (b"first", b"second"):
            await publish_nats(on_nats, body)
            [message] = await fetch_all(on_nats, 1)
            assert message.id == "1"
            await on_nats.settle([], [(message, REASON)])
            await jetstream_of(on_nats).delete_stream(stream_of(on_nats))
            await on_nats.open()

        assert bodies_of(await on_nats.list_dead(9)) == [b"first", b"second"]

    async def test_letter_that_was_removed_meanwhile(self, on_nats: NatsSource) -> None:
        """If the dead letter of a message was removed, the same message can become a dead letter again."""
        await publish_nats(on_nats, b"x")
        [message] = await fetch_all(on_nats, 1)
        await keep_dead(on_nats, [(message, REASON)])
        await keep_dead(on_nats, [(message, REASON)])
        assert await on_nats.purge_dead(9) == 1
        await on_nats.settle([], [(message, REASON)])

        assert bodies_of(await on_nats.list_dead(9)) == [b"x"]

    async def test_replay_of_letters_made_anew(self, on_nats: NatsSource) -> None:
        """If the stream of dead letters is created again, a dead letter with a reused number can be replayed."""
        for body in (b"first", b"second"):
            await publish_nats(on_nats, body)
            await on_nats.settle([], [(message, REASON) for message in await fetch_all(on_nats, 1)])
            assert await on_nats.replay_dead(9) == 1
            again = await fetch_all(on_nats, 1)
            assert bodies_of(again) == [body]
            await on_nats.settle(again, [])
            await jetstream_of(on_nats).delete_stream(dead_stream_of(on_nats))
            await on_nats.open()

    @pytest.mark.parametrize("less", [0, 1, 100, 5_000])
    async def test_message_near_the_limit(self, nats: NatsServer, on_nats: NatsSource, less: int) -> None:
        """A message near the server's `max_payload` becomes a dead letter, and later messages are delivered."""
        body = junk(1024 * 1024 - less)
        await publish_nats(on_nats, body, *numbered(2))
        source = NatsSource(nats.url, stream_of(on_nats), ack_wait=60)
        async with relaying(source) as (relay, emulator):
            await until(lambda: relay.unready is None and all_settled(relay, 3))
            await publish_nats(on_nats, *numbered(1, first=2))
            await until(lambda: emulator.stats()["total_events"] == 3)
        [letter] = await on_nats.list_dead(9)

        if less < 5_000:
            check_shortened(letter, body, len(body))
            assert await on_nats.replay_dead(9) == 0
        assert letter.reason.startswith("undecodable: event must be JSON")
        assert (await on_nats.lag()).pending == 0
        assert await on_nats.purge_dead(9) == 1

    async def test_dead_stream_that_takes_less(self, on_nats: NatsSource) -> None:
        """If a dead letter is too large for its stream, it is shortened; smaller dead letters are stored unchanged."""
        stream, dead = jetstream_of(on_nats), dead_stream_of(on_nats)
        await stream.delete_stream(dead)
        await stream.add_stream(name=dead, subjects=[dead], max_msg_size=100_000)
        body = junk(600_000)
        await publish_nats(on_nats, b"small", body, b"other")
        await on_nats.settle([], [(message, REASON) for message in await fetch_all(on_nats, 3)])
        letters = {letter.message_id: letter for letter in await on_nats.list_dead(9)}

        check_shortened(letters["2"], body, 100_000)
        assert (letters["1"].body, letters["3"].body, len(letters)) == (b"small", b"other", 3)
        assert await on_nats.replay_dead(9) == 2
        assert [letter.message_id for letter in await on_nats.list_dead(9)] == ["2"]

    async def test_letter_that_is_refused(self, nats: NatsServer, on_nats: NatsSource) -> None:
        """If the stream refuses a dead letter, its message stays unsettled, and later messages are delivered."""
        stream, dead = jetstream_of(on_nats), dead_stream_of(on_nats)
        await stream.delete_stream(dead)
        await stream.add_stream(name=dead, subjects=[dead], max_bytes=1, discard="new")
        await publish_nats(on_nats, junk(50), *numbered(2))
        async with relaying(NatsSource(nats.url, stream_of(on_nats), ack_wait=60)) as (relay, emulator):
            await until(lambda: emulator.stats()["total_events"] == 2)
            await until(lambda: (relay.unready or "").startswith("dead letters cannot be kept: "))
            assert (await on_nats.lag()).pending >= 1
            await stream.update_stream(name=dead, subjects=[dead], max_bytes=-1)
            await until(lambda: relay.unready is None and all_settled(relay, 3))

        assert bodies_of(await on_nats.list_dead(9)) == [junk(50)]
        assert (await on_nats.lag()).pending == 0


# --- Kafka ---

PRODUCE, TOO_LARGE, REFUSED = 0, 10, 29


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    """Run one Kafka broker, which all tests of this module share."""
    with kafka_server() as server:
        yield server


@pytest.fixture
def topic(kafka: KafkaServer) -> str:
    """Create a topic of one partition for this test, and a topic for its dead letters; return the name."""
    name = f"letters{next(_names)}"
    kafka.create_topic(name, 1)
    kafka.create_topic(f"{name}-dead", 1)
    return name


def on_kafka(server: KafkaServer, topic: str) -> KafkaSource:
    """Return a source that reads the topic."""
    return KafkaSource(server.bootstrap_servers, topic, f"relay-{topic}", session_timeout=1.2)


async def publish_kafka(server: KafkaServer, topic: str, *bodies: bytes) -> None:
    """Publish to a topic."""
    async with KafkaTopic(server.bootstrap_servers, topic) as publisher:
        await publisher.publish(bodies)


@needs_kafka
class TestKafka:
    """Tests of a relay on Kafka."""

    @pytest.mark.parametrize("less", [100, 200, 20_000])
    async def test_message_near_the_limit(self, kafka: KafkaServer, topic: str, less: int) -> None:
        """A message near `max_request_size` becomes a dead letter, and later messages are delivered."""
        body = junk(1024 * 1024 - less)
        await publish_kafka(kafka, topic, body, *numbered(2))
        async with relaying(on_kafka(kafka, topic)) as (relay, _):
            await until(lambda: relay.unready is None and all_settled(relay, 3))
        source = on_kafka(kafka, topic)
        await source.open()
        [letter] = await source.list_dead(9)

        if less < 10_000:
            check_shortened(letter, body, len(body))
            assert await source.replay_dead(9) == 0
            assert [again.size for again in await source.list_dead(9)] == [len(body)]
        assert await source.purge_dead(9) == 1
        assert await source.list_dead(9) == []
        await source.aclose()

    async def test_cluster_that_takes_less(self, kafka: KafkaServer, topic: str) -> None:
        """If the cluster refuses a dead letter as too large, the dead letter is shortened."""
        body = junk(300_000)
        await publish_kafka(kafka, topic, body)
        source = on_kafka(kafka, topic)
        await source.open()
        found = await fetch_all(source, 1)
        kafka.fail(PRODUCE, TOO_LARGE, 1)
        await source.settle([], [(message, REASON) for message in found])
        [letter] = await source.list_dead(9)

        check_shortened(letter, body, 64 * 1024 + 1)
        await source.aclose()

    def test_key_that_is_too_long(self) -> None:
        """If a visitor's id is too long to be valid, it is not used as a key, because keys enlarge a record."""
        assert visitor_of(b'{"view":{"sessionExternalId":"%b"}}' % (b"x" * 1024)) == b"x" * 1024
        assert visitor_of(b'{"view":{"sessionExternalId":"%b"}}' % (b"x" * 1025)) is None

    async def test_letter_that_is_refused(self, kafka: KafkaServer, topic: str) -> None:
        """If the cluster refuses a dead letter, its message's offset is not committed; later messages are delivered."""
        await publish_kafka(kafka, topic, junk(50), *numbered(2))
        kafka.fail(PRODUCE, REFUSED, 4)
        async with relaying(on_kafka(kafka, topic)) as (relay, emulator):
            await until(lambda: (relay.unready or "").startswith("dead letters cannot be kept: "))
            await until(lambda: emulator.stats()["total_events"] == 2)
            await until(lambda: relay.unready is None and all_settled(relay, 3))
        source = on_kafka(kafka, topic)
        await source.open()

        assert bodies_of(await source.list_dead(9)) == [junk(50)]
        await source.aclose()

    async def test_topic_that_was_wiped(self, kafka: KafkaServer, topic: str) -> None:
        """If a topic is created again, its committed offset is gone, and its partition is read from the beginning."""
        await publish_kafka(kafka, topic, *numbered(5))
        source = on_kafka(kafka, topic)
        await source.open()
        found = await fetch_all(source, 5)
        partition = found[0].handle.partition
        sought: list[int] = []

        class Consumer:
            """A fake consumer after a rebalance; its position is offset 0, because no offset is committed."""

            def pause(self, *_: Any) -> None:
                """Do nothing."""

            resume = pause

            def assignment(self) -> set[Any]:
                """Return the topic's only partition."""
                return {partition}

            def seek(self, _: Any, offset: int) -> None:
                """Record the offset."""
                sought.append(offset)

        # No offset was ever committed, so the source continues after the last message that `fetch` has returned.
        await rebalance(source, {partition}, Consumer(), "nobody")
        assert (sought, knows(source, partition)) == ([5], True)
        await source.settle(found[:2], [])
        await rebalance(source, {partition}, Consumer(), "nobody")

        assert (sought, knows(source, partition)) == ([5], False)
        await source.aclose()


@needs_kafka
async def test_fetching_from_a_cluster_that_is_gone() -> None:
    """If no broker is left, `fetch` and `open` raise within seconds, and `fetch` does not return an empty list."""
    with kafka_server() as server:
        server.create_topic("events", 1)
        server.create_topic("events-dead", 1)
        source = on_kafka(server, "events")
        await source.open()
        assert await source.fetch(9, 0.2) == []
        server.down()
        with pytest.raises(ConnectionError, match="no broker of"):
            await asyncio.wait_for(fetch_all(source, 1), 60)
        with pytest.raises(ConnectionError, match="no broker of"):
            await source.open()
        server.up()
        await source.open()
        await source.aclose()


@needs_kafka
async def test_a_cluster_that_is_gone() -> None:
    """If no broker is left, a relay is unready within seconds and can be stopped; once one is back, it is ready."""
    with kafka_server() as server:
        server.create_topic("events", 1)
        server.create_topic("events-dead", 1)
        async with relaying(on_kafka(server, "events"), (True, False)) as (relay, emulator):
            await publish_kafka(server, "events", *numbered(2))
            await until(lambda: emulator.stats()["total_events"] == 2 and relay.unready is None)
            server.down()
            await until(lambda: relay.unready is not None, 20.0)
            assert "the broker is not connected" in (relay.unready or "")
            assert relay.stats().connected is False
            server.up()
            await until(lambda: relay.unready is None)
            await publish_kafka(server, "events", *numbered(1, first=2))
            await until(lambda: len({record.fields["productId"] for record in emulator.events()}) == 3)
            server.process.kill()
            server.process.wait()
            await until(lambda: relay.unready is not None, 20.0)


@needs_kafka
@pytest.mark.parametrize("wait", [0.0, 0.3, 1.0])
async def test_the_end_without_a_cluster(wait: float) -> None:
    """If the relay is stopped while there is no broker, `run` returns, and aiokafka leaves no task running."""
    with kafka_server() as server:
        server.create_topic("events", 1)
        server.create_topic("events-dead", 1)
        async with running_emulator(Settings(limit=None)) as emulator:
            client = AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url)
            relay = Relay(on_kafka(server, "events"), client, grace=1.0)
            running = asyncio.create_task(relay.run())
            await publish_kafka(server, "events", *numbered(2))
            await until(lambda: all_settled(relay, 2))
            server.process.kill()
            server.process.wait()
            await asyncio.sleep(wait)
            relay.stop()
            async with asyncio.timeout(30):
                assert await running in (True, False)
        assert {task for task in asyncio.all_tasks() if "aiokafka" in repr(task)} == set()
