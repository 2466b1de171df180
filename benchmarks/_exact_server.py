"""A server that keeps the limit exactly: no more than `limit` admitted requests in any one second, the rest get 429.

It runs in a process of its own. Every request is first held back by a random delay, as a network would, and counts from
the end of that delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from typing import TYPE_CHECKING, NamedTuple

from _connection import Connection, Request
from _process import running as running_process
from _window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _process import Pipe

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

    def __init__(self, port: int, pipe: Pipe) -> None:
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
    with running_process(_main, conditions) as (port, pipe):
        yield RunningServer(port, pipe)


class _Judge:
    """Counts the arrivals of all connections."""

    def __init__(self, conditions: Conditions) -> None:
        self.log: list[Arrival] = []
        self.latency = conditions.latency
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._window = Window(conditions.limit)

    def delay(self) -> float:
        return self._random.uniform(0.0, self._conditions.jitter)

    def status(self, number: int, at: float) -> int:
        """Count a request that arrived `at`; return its status."""
        admitted = self._window.admit(at)
        self.log.append(Arrival(at, number, admitted))
        return 200 if admitted else 429


class _Connection(Connection):
    """Answers requests of one event, whose product numbers it."""

    def __init__(self, judge: _Judge) -> None:
        super().__init__()
        self._judge = judge

    def arrived(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        # The time that counts is the one drawn, not the one at which a busy machine lets the timer fire.
        at = loop.time() + self._judge.delay()
        [number] = _NUMBER.findall(request.body)
        loop.call_at(at, self._count, int(number), at)

    def _count(self, number: int, at: float) -> None:
        answer = _ANSWERS[self._judge.status(number, at)]
        asyncio.get_running_loop().call_later(self._judge.latency, self.transport.write, answer)


def _main(pipe: Pipe, conditions: Conditions) -> None:
    asyncio.run(_serve(pipe, conditions))


async def _serve(pipe: Pipe, conditions: Conditions) -> None:
    loop = asyncio.get_running_loop()
    judge = _Judge(conditions)
    server = await loop.create_server(lambda: _Connection(judge), "127.0.0.1", 0)
    stop = asyncio.Event()
    loop.add_reader(pipe.fileno(), stop.set)
    pipe.send(server.sockets[0].getsockname()[1])
    await stop.wait()
    loop.remove_reader(pipe.fileno())
    pipe.send(judge.log)
