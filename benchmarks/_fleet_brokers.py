"""Brokers of a benchmark's own, each a real server on loopback that is gone afterwards."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from retailrocket_async.relay import RelaySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from retailrocket_async.relay import Publisher


WINDOW = RelaySettings(source="unset").window
"""Messages that a relay has in hand at most."""


class Broker(Protocol):
    """A broker with one stream of events.

    Attributes:
        name: in tables.
        url: the address of the relay's source.
        pid: the number of its process.
        repeated: messages at most that come twice when a second relay comes, since it takes over what the first has in
            hand.
    """

    name: str
    url: str
    pid: int
    repeated: int

    def publishing(self) -> contextlib.AbstractAsyncContextManager[Publisher]:
        """Give a publisher to the stream, in the running event loop."""
        ...

    def with_lease(self, seconds: float) -> str:
        """Return the address with this lease."""
        ...


async def publish(broker: Broker, envelopes: Sequence[bytes], batch: int = 2_000) -> None:
    """Publish envelopes in order."""
    async with broker.publishing() as publisher:
        for start in range(0, len(envelopes), batch):
            await publisher.publish(envelopes[start : start + batch])


class _Redis:
    name = "Redis Streams"
    repeated = 0

    def __init__(self, port: int, pid: int) -> None:
        self.pid = pid
        self._server = f"redis://127.0.0.1:{port}/0"
        self.url = f"{self._server}?stream=events"

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        from redis.asyncio import Redis  # noqa: PLC0415 - the broker's own library

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
    """Run a redis-server that keeps everything in memory."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fleet-redis-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        process = subprocess.Popen([*command, "--logfile", ""], stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            yield _Redis(port, process.pid)
        finally:
            process.kill()
            process.wait()


class _Nats:
    name = "NATS JetStream"
    repeated = 0

    def __init__(self, port: int, pid: int) -> None:
        self.pid = pid
        self._server = f"nats://127.0.0.1:{port}"
        # The default of 30 s is how long what a killed relay had in hand would be waited for.
        self.url = self.with_lease(10)

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        import nats  # noqa: PLC0415 - the broker's own library

        from retailrocket_async.relay import NatsSubject  # noqa: PLC0415

        # The stream as the relay would create it, which makes its own consumer.
        connection: Any = await nats.connect(self._server)
        await connection.jetstream().add_stream(name="events", subjects=["events"], retention="workqueue")
        await connection.close()
        async with NatsSubject(self._server, "events") as subject:
            yield subject

    def with_lease(self, seconds: float) -> str:
        return f"{self._server}/events?ack_wait={seconds}"


@contextlib.contextmanager
def nats() -> Iterator[Broker]:
    """Run a nats-server with its store on disk."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fleet-nats-") as folder:
        command = ["nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", folder]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            yield _Nats(port, process.pid)
        finally:
            process.kill()
            process.wait()


class _Kafka:
    name = "Kafka (mock cluster)"
    repeated = 2 * WINDOW

    def __init__(self, servers: str, pid: int) -> None:
        self.pid = pid
        self._servers = servers
        # The shortest that brokers allow by default: so long what a killed relay had is waited for.
        self.url = f"kafka://{servers}/events?session_timeout=6"

    @contextlib.asynccontextmanager
    async def publishing(self) -> Any:
        from retailrocket_async.relay import KafkaTopic  # noqa: PLC0415

        async with KafkaTopic(self._servers, "events") as topic:
            yield topic

    def with_lease(self, seconds: float) -> str:  # noqa: ARG002 - it knows none
        return self.url


@contextlib.contextmanager
def kafka() -> Iterator[Broker]:
    """Run librdkafka's mock cluster: no disk, no replicas, and 5 MB of a partition at most; its speed says nothing."""
    script = Path(__file__).parent.parent / "tests" / "kafka_server.py"
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            servers = process.stdout.readline().strip()
            for topic in ("events 32", "events-dead 1"):
                process.stdin.write(f"topic {topic}\n")
                process.stdin.flush()
                assert process.stdout.readline().strip() == "0"
            yield _Kafka(servers, process.pid)
        finally:
            process.kill()


BROKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Broker]]] = {
    "redis": redis,
    "nats": nats,
    "kafka": kafka,
}
"""Every broker that relays are measured on."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for_port(port: int, patience: float = 30.0) -> None:
    """Return when somebody listens on `port`."""
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < end, "the server does not listen"
        time.sleep(0.02)
