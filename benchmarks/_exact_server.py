"""A server that keeps the limit exactly: no more than `limit` admitted requests in any one second, the rest get 429.

It runs in a process of its own, so that a blocked client cannot make the clock that judges it late. Every request is
first held back by a random delay, as a network would, and counts from the end of that delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import re
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PER = 1.0
_NUMBER = re.compile(rb'"productId":(\d+)')
_ANSWERS = {
    200: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    429: b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
}


class Conditions(NamedTuple):
    """What the server imitates: its limit, the network's random delay, the time an answer takes after the count."""

    limit: int = 50
    jitter: float = 0.02
    latency: float = 0.0
    seed: int = 0


class Arrival(NamedTuple):
    """One request as the server counted it; times are seconds of the clock that all processes here share."""

    at: float
    number: int
    admitted: bool


class RunningServer:
    """The hold on a server process."""

    def __init__(self, port: int, pipe: Connection[object, object]) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._pipe = pipe

    def arrivals(self) -> list[Arrival]:
        """Stop the server; return its log in the order of time."""
        self._pipe.send("stop")
        log = self._pipe.recv()
        assert isinstance(log, list)
        return sorted(log)


@contextlib.contextmanager
def running(conditions: Conditions) -> Iterator[RunningServer]:
    """Run a server while the block runs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, conditions), daemon=True)
    process.start()
    try:
        port = ours.recv()
        assert isinstance(port, int)
        yield RunningServer(port, ours)
    finally:
        process.terminate()
        process.join()


class _Judge:
    """Counts the arrivals of all connections."""

    def __init__(self, conditions: Conditions) -> None:
        self.log: list[Arrival] = []
        self.latency = conditions.latency
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._admitted: deque[float] = deque()

    def delay(self) -> float:
        return self._random.uniform(0.0, self._conditions.jitter)

    def status(self, number: int, at: float) -> int:
        """Count a request that arrived `at`; return its status."""
        while self._admitted and self._admitted[0] <= at - PER:
            self._admitted.popleft()
        admitted = len(self._admitted) < self._conditions.limit
        if admitted:
            self._admitted.append(at)
        self.log.append(Arrival(at, number, admitted))
        return 200 if admitted else 429


class _Connection(asyncio.Protocol):
    """Just enough of HTTP/1.1 for one client that is known: no pipelining, and one event, whose product numbers it."""

    def __init__(self, judge: _Judge) -> None:
        self._judge = judge
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers[b"content-length"]):
            return
        self._read = b""
        loop = asyncio.get_running_loop()
        # The time that counts is the one drawn, not the one at which a busy machine lets the timer fire.
        at = loop.time() + self._judge.delay()
        [number] = _NUMBER.findall(body)
        loop.call_at(at, self._count, int(number), at)

    def _count(self, number: int, at: float) -> None:
        answer = _ANSWERS[self._judge.status(number, at)]
        asyncio.get_running_loop().call_later(self._judge.latency, self._transport.write, answer)


def _main(pipe: Connection[object, object], conditions: Conditions) -> None:
    asyncio.run(_serve(pipe, conditions))


async def _serve(pipe: Connection[object, object], conditions: Conditions) -> None:
    loop = asyncio.get_running_loop()
    judge = _Judge(conditions)
    server = await loop.create_server(lambda: _Connection(judge), "127.0.0.1", 0)
    stop = asyncio.Event()
    loop.add_reader(pipe.fileno(), stop.set)
    pipe.send(server.sockets[0].getsockname()[1])
    await stop.wait()
    loop.remove_reader(pipe.fileno())
    pipe.send(judge.log)
