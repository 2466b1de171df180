"""Brokers of a benchmark's own, each a real server on loopback that is gone afterwards."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from retailrocket_async.relay import Publisher


class Broker(Protocol):
    """A broker with one stream of events.

    Attributes:
        name: in tables.
        url: the address of the relay's source.
        pid: the number of its process.
    """

    name: str
    url: str
    pid: int

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


BROKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Broker]]] = {"redis": redis}
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
