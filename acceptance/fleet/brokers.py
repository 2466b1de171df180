"""Brokers from which relays read: real servers on loopback; each ends with the `with` block that started it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from retailrocket_async.relay import RelaySettings
from tests.support.kafka_server import kafka_server
from tests.support.nats_server import nats_server
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from retailrocket_async.relay import Publisher


WINDOW = RelaySettings(source="unset").window
"""The greatest number of unsettled messages of a relay."""


class Broker(Protocol):
    """A running broker with one stream of events.

    Attributes:
        name: the broker's name in tables.
        url: the address from which a relay creates its source.
        pid: the id of the broker's process.
        repeated: how many messages may be delivered twice when a second relay joins and takes over unsettled messages
            of the first relay.
    """

    name: str
    url: str
    pid: int
    repeated: int

    def publishing(self) -> contextlib.AbstractAsyncContextManager[Publisher]:
        """Return a context manager that yields a publisher for the stream, to be used in the running event loop."""
        ...

    def with_lease(self, seconds: float) -> str:
        """Return the address of the source, with this lease in seconds."""
        ...


async def publish(broker: Broker, envelopes: Sequence[bytes], batch: int = 2_000) -> None:
    """Publish envelopes in order."""
    async with broker.publishing() as publisher:
        for start in range(0, len(envelopes), batch):
            await publisher.publish(envelopes[start : start + batch])


class _Redis:
    name = "Redis Streams"
    repeated = 0

    def __init__(self, url: str, pid: int) -> None:
        self.pid = pid
        self._server = url
        self.url = f"{url}?stream=events"

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        from redis.asyncio import Redis  # noqa: PLC0415 - only this broker needs it

        from retailrocket_async.relay import RedisStream  # noqa: PLC0415

        redis: Any = Redis.from_url(self._server)
        try:
            yield RedisStream(redis, "events")
        finally:
            await redis.aclose()

    def with_lease(self, seconds: float) -> str:
        return f"{self.url}&lease={seconds}"


@contextlib.contextmanager
def redis() -> Iterator[Broker]:
    """Run a redis-server that stores nothing on disk, while the block runs."""
    with RedisServer() as server:
        yield _Redis(server.url, server.pid)


class _Nats:
    name = "NATS JetStream"
    repeated = 0

    def __init__(self, url: str, pid: int) -> None:
        self.pid = pid
        self._server = url
        # The unsettled messages of a killed relay are fetched again when their lease is over; the default of 30 s would
        # make the run longer.
        self.url = self.with_lease(10)

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        import nats  # noqa: PLC0415 - only this broker needs it

        from retailrocket_async.relay import NatsSubject  # noqa: PLC0415

        # This creates the stream in the same way as a relay does, so that events can be published before a relay runs.
        connection: Any = await nats.connect(self._server)
        await connection.jetstream().add_stream(name="events", subjects=["events"], retention="workqueue")
        await connection.close()
        async with NatsSubject(self._server, "events") as subject:
            yield subject

    def with_lease(self, seconds: float) -> str:
        return f"{self._server}/events?ack_wait={seconds}"


@contextlib.contextmanager
def nats() -> Iterator[Broker]:
    """Run a nats-server that stores its messages on disk, while the block runs."""
    with nats_server() as server:
        yield _Nats(server.url, server.process.pid)


class _Kafka:
    name = "Kafka (mock cluster)"
    repeated = 2 * WINDOW

    def __init__(self, servers: str, pid: int) -> None:
        self.pid = pid
        self._servers = servers
        # Messages of a killed relay are read again after this time-out; brokers allow no less than 6 s by default.
        self.url = f"kafka://{servers}/events?session_timeout=6"

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        from retailrocket_async.relay import KafkaTopic  # noqa: PLC0415

        async with KafkaTopic(self._servers, "events") as topic:
            yield topic

    def with_lease(self, seconds: float) -> str:  # noqa: ARG002 - Kafka has no lease
        return self.url


@contextlib.contextmanager
def kafka() -> Iterator[Broker]:
    """Run librdkafka's mock cluster while the block runs.

    The mock cluster has no disk and no replicas, and stores at most 5 MB of a partition, so its speed says nothing
    about Kafka.
    """
    with kafka_server() as server:
        server.create_topic("events", 32)
        server.create_topic("events-dead", 1)
        yield _Kafka(server.bootstrap_servers, server.process.pid)


BROKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Broker]]] = {
    "redis": redis,
    "nats": nats,
    "kafka": kafka,
}
"""All brokers by name; each function runs one while its block runs."""
