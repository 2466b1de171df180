"""A server that counts how often it recorded each event, and checks the order; it runs in a process of its own.

Events are identified by their product. Requests can be refused because of their content, or all of them on command.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from acceptance.support.order_check import CheckedRequest, OrderCheck, RequestState
from benchmarks.support import server_process
from benchmarks.support.connection import Connection, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.server_process import Pipe

REFUSED = b'"refused"'
"""A request whose body contains this text is refused with 400."""

_NUMBER = re.compile(rb'"productId":(\d+)')
_ANSWERS = {status: b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status for status in (200, 400, 401, 500, 503)}


class RecordingServer:
    """Controls a running server."""

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.url = f"http://127.0.0.1:{port}/1.0/"
        self._pipe = pipe

    def recorded(self) -> int:
        """Return the number of different events that are recorded."""
        return int(self._ask("recorded"))

    def counts(self) -> Counter[int]:
        """Return how often each event is recorded, by its product."""
        counts: Counter[int] = self._ask("counts")
        return counts

    def order(self) -> tuple[int, int]:
        """Return the numbers of overlapping requests and of events in the wrong order; see `OrderCheck`."""
        overlaps, disordered = self._ask("order")
        return overlaps, disordered

    def longest_gap(self) -> float:
        """Return the longest time between two requests, in seconds."""
        return float(self._ask("gap"))

    def answer_all(self, status: int | None) -> None:
        """Answer every request with `status` and record nothing; if `status` is None, accept requests again."""
        self._ask(status)

    def _ask(self, command: object) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()


@contextlib.contextmanager
def running(latency: float = 0.02) -> Iterator[RecordingServer]:
    """Run a server while the block runs; it answers after `latency` seconds."""
    with server_process.running(_main, latency) as (port, pipe):
        yield RecordingServer(port, pipe)


# --- in the process of the server -------------------------------------------------------------------------------------


class _Record:
    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.counts: Counter[int] = Counter()
        self.status: int | None = None
        self.order = OrderCheck()
        self.longest_gap = 0.0
        self._last_at: float | None = None

    def handle(self, body: bytes) -> int:
        """Record the events of a body unless they are refused; return the status of the answer."""
        now = asyncio.get_running_loop().time()
        if self._last_at is not None:
            self.longest_gap = max(self.longest_gap, now - self._last_at)
        self._last_at = now
        if self.status is not None:
            return self.status
        if REFUSED in body:
            return 400
        self.counts.update(map(int, _NUMBER.findall(body)))
        self.order.record(body)
        return 200


class _Connection(Connection):
    def __init__(self, record: _Record) -> None:
        super().__init__()
        self._record = record
        self._checked: CheckedRequest | None = None

    def request_received(self, request: Request) -> None:
        self._checked = self._record.order.begin(request.body)
        answer = _ANSWERS[self._record.handle(request.body)]
        asyncio.get_running_loop().call_later(self._record.latency, self._answer, self._checked, answer)

    def _answer(self, checked: CheckedRequest, answer: bytes) -> None:
        self._record.order.end(checked, RequestState.ANSWERED)
        self.transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._checked is not None:
            self._record.order.end(self._checked, RequestState.LOST)


def _main(pipe: Pipe, latency: float) -> None:
    asyncio.run(_serve(pipe, latency))


async def _serve(pipe: Pipe, latency: float) -> None:
    loop = asyncio.get_running_loop()
    record = _Record(latency)
    server = await loop.create_server(lambda: _Connection(record), "127.0.0.1", 0, backlog=1000)

    def obey() -> None:
        match pipe.recv():
            case "recorded":
                pipe.send(len(record.counts))
            case "counts":
                pipe.send(record.counts)
            case "order":
                pipe.send((record.order.overlaps, record.order.disordered))
            case "gap":
                pipe.send(record.longest_gap)
            case status:
                assert status is None or isinstance(status, int)
                record.status = status
                pipe.send(None)

    loop.add_reader(pipe.fileno(), obey)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
