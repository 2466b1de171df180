"""A server, called sink, that does as little as possible: it answers every request with success and counts events.

The server runs in a process of its own. Of a request it reads only the length and the encoding of the body, so that it
hardly influences the measurement of a client. Its answer satisfies the clients of all measured services.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from typing import TYPE_CHECKING, Any

import attrs

from benchmarks.support import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.server_process import Pipe

MARK = b"benchmarkvisitor"
"""The beginning of every visitor's id; the server counts it in a body to count the events."""

_BODY = b'{"status": 1, "code": 200, "success": true}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@attrs.frozen(kw_only=True)
class _Settings:
    """The settings of the server; `running` explains them."""

    latency: float
    bodies: bool
    arrivals: bool


class Sink:
    """Controls a running sink.

    Attributes:
        port: the port on loopback on which the sink listens.
    """

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.port = port
        self._pipe = pipe

    def take(self) -> dict[str, Any]:
        """Return the counters of the sink since the last call of `take`.

        The keys are ``requests``, ``events``, ``size`` (bytes of bodies), ``arrivals`` (system time and number of
        events of each request) and ``bodies``; the last two are empty unless `running` was asked for them.
        """
        self._pipe.send("take")
        counters = self._pipe.recv()
        assert isinstance(counters, dict)
        return counters


@contextlib.contextmanager
def running(*, latency: float = 0.0, bodies: bool = False, arrivals: bool = False) -> Iterator[Sink]:
    """Run a sink while the block runs.

    Args:
        latency: seconds until a request is answered.
        bodies: whether the sink stores every body, and also the arrivals.
        arrivals: whether the sink stores the time and the number of events of each request.
    """
    settings = _Settings(latency=latency, bodies=bodies, arrivals=arrivals or bodies)
    with server_process.running(_main, settings) as (port, pipe):
        yield Sink(port, pipe)


# --- in the process of the server -------------------------------------------------------------------------------------


@attrs.define
class _Counters:
    requests: int = 0
    events: int = 0
    size: int = 0
    arrivals: list[tuple[float, int]] = attrs.field(factory=list[tuple[float, int]])
    bodies: list[bytes] = attrs.field(factory=list[bytes])

    def clear(self) -> None:
        self.requests = self.events = self.size = 0
        self.arrivals, self.bodies = [], []


class _Connection(asyncio.Protocol):
    """One connection of a client, which sends its requests one after the other."""

    def __init__(self, settings: _Settings, counters: _Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._head = b""
        self._parts: list[bytes] = []
        self._left = -1
        self._gzip = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left < 0:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                head, data = self._head[:end].lower(), self._head[end + 4 :]
                self._head = b""
                start = head.find(b"content-length:")
                self._left = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
                self._gzip = b"content-encoding: gzip" in head
            taken, data = data[: self._left], data[self._left :]
            self._parts.append(taken)
            self._left -= len(taken)
            if self._left == 0:
                self._received()

    def _received(self) -> None:
        # Client and server share the system's clock. The clock is read first, so that the time excludes the server's
        # work.
        at = time.time() if self._settings.arrivals else 0.0
        body, self._parts, self._left = b"".join(self._parts), [], -1
        if self._gzip:
            body = gzip.decompress(body)
        counters = self._counters
        counters.requests += 1
        counters.size += len(body)
        counters.events += (count := body.count(MARK))
        if self._settings.arrivals:
            counters.arrivals.append((at, count))
        if self._settings.bodies:
            counters.bodies.append(body)
        if self._settings.latency:
            asyncio.get_running_loop().call_later(self._settings.latency, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_ANSWER)


def _main(pipe: Pipe, settings: _Settings) -> None:
    asyncio.run(_serve(pipe, settings))


async def _serve(pipe: Pipe, settings: _Settings) -> None:
    """Serve until the process ends; answer each message on `pipe` with the counters, and reset them."""
    counters = _Counters()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(settings, counters), "127.0.0.1", 0, backlog=1000)
    pipe.send(server.sockets[0].getsockname()[1])

    def take() -> None:
        pipe.recv()
        pipe.send(attrs.asdict(counters))
        counters.clear()

    loop.add_reader(pipe.fileno(), take)
    await server.serve_forever()
