"""The cheapest server there is: reads a request, answers that all is well, and counts. In a process of its own.

It takes nothing apart but the length of the body, so that what is measured beside it is the client. It answers in the
words of all contestants at once.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from _process import Pipe

MARK = b"benchmarkvisitor"
"""Part of every visitor's id: as often as it is in a body, so many events are."""

_BODY = b'{"status": 1, "code": 200, "success": true}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@attrs.frozen(kw_only=True)
class Sink:
    """How the server behaves.

    Attributes:
        latency: seconds until it answers.
        times: whether it notes when each request came, and keeps its body, which tells when each event came.
        pace: whether it notes when each request came, and how many events were in it, but no body.
    """

    latency: float = 0.0
    times: bool = False
    pace: bool = False


@attrs.define
class _Books:
    requests: int = 0
    events: int = 0
    size: int = 0
    arrivals: list[tuple[float, int]] = attrs.field(factory=list[tuple[float, int]])
    bodies: list[bytes] = attrs.field(factory=list[bytes])


class _Connection(asyncio.Protocol):
    """One connection of a client, which sends its requests one after the other."""

    def __init__(self, sink: Sink, books: _Books) -> None:
        self._sink = sink
        self._books = books
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
        # The system's clock, which all processes share; read before there is anything to do.
        at = time.time() if self._sink.times or self._sink.pace else 0.0
        body, self._parts, self._left = b"".join(self._parts), [], -1
        if self._gzip:
            body = gzip.decompress(body)
        self._books.requests += 1
        self._books.size += len(body)
        self._books.events += (count := body.count(MARK))
        if at:
            self._books.arrivals.append((at, count))
        if self._sink.times:
            self._books.bodies.append(body)
        if self._sink.latency:
            asyncio.get_running_loop().call_later(self._sink.latency, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_ANSWER)


def main(pipe: Pipe, sink: Sink) -> None:
    """Serve until the process is ended; each message that comes is answered with the counters, which begin anew."""

    async def serve() -> None:
        books = _Books()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(sink, books), "127.0.0.1", 0, backlog=1000)
        pipe.send(server.sockets[0].getsockname()[1])

        def asked() -> None:
            pipe.recv()
            pipe.send(attrs.asdict(books))
            books.requests = books.events = books.size = 0
            books.arrivals, books.bodies = [], []

        loop.add_reader(pipe.fileno(), asked)
        await server.serve_forever()

    asyncio.run(serve())


def taken(pipe: Pipe) -> dict[str, Any]:
    """Return what the server has counted since the last call."""
    pipe.send("counters")
    counters = pipe.recv()
    assert isinstance(counters, dict)
    return counters
