"""A server that answers batches after a latency, and finds overlaps and wrong order; it runs in its own process.

The server shares no code with the client. The number of an event is its product id. The numbers of a visitor's events
must increase in the order in which the events were tracked.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING, NamedTuple

import orjson

from benchmarks.support import server_process
from benchmarks.support.connection import Connection, Request
from benchmarks.support.visitor_order import Numbered, Order, Overlaps, UnderWay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.server_process import Pipe

QUIET = "quiet"
"""If a visitor's id begins with this text, the judge reports when each event of the visitor arrived."""

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Exchange(NamedTuple):
    """One request. Times are in seconds of the monotonic clock, which all processes of the machine share.

    Attributes:
        began: when the first bytes arrived.
        ended: when the answer was written, or the connection was closed.
        events: number of events in the request; 0 if the client got no answer.
    """

    began: float
    ended: float
    events: int


class Verdict(NamedTuple):
    """The results of a judge.

    Attributes:
        exchanges: every request that has ended.
        overlaps: number of requests that began while another request with an event of the same visitor was under way.
        disordered: the number of visitors whose events were not recorded in order.
        quiet: for each event of a quiet visitor, the number of the event and the time at which its request arrived.
    """

    exchanges: list[Exchange]
    overlaps: int
    disordered: int
    quiet: list[tuple[int, float]]


class Judge:
    """Controls a running judge.

    Attributes:
        port: the port on loopback on which the judge listens.
    """

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.port = port
        self._pipe = pipe

    def verdict(self) -> Verdict:
        """Return the results since the judge was started."""
        self._pipe.send("verdict")
        verdict = self._pipe.recv()
        assert isinstance(verdict, Verdict)
        return verdict


@contextlib.contextmanager
def running(latency: float) -> Iterator[Judge]:
    """Run a judge while the block runs; the judge answers each request after `latency` seconds."""
    with server_process.running(_main, latency) as (port, pipe):
        yield Judge(port, pipe)


def closed_by_client(transport: asyncio.Transport) -> bool:
    """Whether the client has closed a connection, even if the event loop has not noticed this yet."""
    if transport.is_closing() or not hasattr(select, "POLLRDHUP"):
        return transport.is_closing()
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLRDHUP)
    return bool(poll.poll(0))


# --- in the process of the server -------------------------------------------------------------------------------------


class _Record:
    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.overlaps = Overlaps()
        self.order = Order()
        self.exchanges: list[Exchange] = []
        self.quiet: list[tuple[int, float]] = []

    def verdict(self) -> Verdict:
        return Verdict(self.exchanges, self.overlaps.count, len(self.order.disordered), self.quiet)


def _numbered(request: Request) -> list[Numbered]:
    body = orjson.loads(request.body)
    events = [event for envelope in body for event in envelope.values()] if isinstance(body, list) else [body]
    return [(event["sessionExternalId"], event["productId"]) for event in events]


class _Connection(Connection):
    """Answers the requests of one connection, which come one after the other."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self._record = record
        self._current: UnderWay | None = None

    def request_received(self, request: Request) -> None:
        events = _numbered(request)
        record = self._record
        record.quiet += [(number, self.began) for visitor, number in events if visitor.startswith(QUIET)]
        self._current = record.overlaps.begin(
            self.began, (visitor for visitor, _ in events), lambda: closed_by_client(self.transport)
        )
        record.order.record(events)
        asyncio.get_running_loop().call_later(record.latency, self._answer, self._current, len(events))

    def connection_lost(self, _: Exception | None) -> None:
        current, self._current = self._current, None
        if current is not None:
            self._record.overlaps.end(current, None)
            self._record.exchanges.append(Exchange(current.began, asyncio.get_running_loop().time(), 0))

    def _answer(self, request: UnderWay, events: int) -> None:
        # If the client has closed the connection, `connection_lost` has ended the request or will end it.
        if request is not self._current or self.transport.is_closing():
            return
        self._current = None
        now = asyncio.get_running_loop().time()
        self._record.overlaps.end(request, now)
        self._record.exchanges.append(Exchange(request.began, now, events))
        self.transport.write(_ANSWER)


def _main(pipe: Pipe, latency: float) -> None:
    asyncio.run(_serve(pipe, latency))


async def _serve(pipe: Pipe, latency: float) -> None:
    loop = asyncio.get_running_loop()
    record = _Record(latency)
    server = await loop.create_server(lambda: _Connection(record), "127.0.0.1", 0, backlog=1000)

    def report() -> None:
        pipe.recv()
        pipe.send(record.verdict())

    loop.add_reader(pipe.fileno(), report)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
