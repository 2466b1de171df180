"""A server that enforces the limit exactly: it answers 429 to every request above `limit` in any one second.

It runs in a process of its own. It delays every request by a random time, as a network would, and counts the request at
the end of that delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.support import server_process
from benchmarks.support.connection import Connection, Request
from benchmarks.support.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.support.server_process import Pipe

_NUMBER = re.compile(rb'"productId":(\d+)')
_ANSWERS = {
    200: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    429: b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
}


class Conditions(NamedTuple):
    """The settings of the server.

    Attributes:
        limit: requests admitted in any one second.
        jitter: the longest random delay of a request in seconds.
        latency: seconds from the count of a request to its answer.
        seed: the seed of the delays.
    """

    limit: int = 50
    jitter: float = 0.02
    latency: float = 0.0
    seed: int = 0


class Arrival(NamedTuple):
    """A request that the server counted.

    Attributes:
        at: seconds of the monotonic clock, which all processes of the machine share.
        number: the number of the request; the client sends it as the product of the request's only event.
        admitted: whether the request was within the limit.
    """

    at: float
    number: int
    admitted: bool


class ExactServer:
    """Controls a running server."""

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._pipe = pipe

    def stop(self) -> list[Arrival]:
        """Stop the server; return all arrivals in the order of time."""
        self._pipe.send("stop")
        log = self._pipe.recv()
        assert isinstance(log, list)
        return sorted(log)


@contextlib.contextmanager
def running(conditions: Conditions) -> Iterator[ExactServer]:
    """Run a server while the block runs."""
    with server_process.running(_main, conditions) as (port, pipe):
        yield ExactServer(port, pipe)


def used_share(arrivals: Sequence[Arrival], seconds: float, per_second: float) -> float:
    """Return the admitted requests of a run as a fraction of the limit, without the run's first and last second."""
    start, end = arrivals[0].at + 1.0, arrivals[0].at + seconds - 1.0
    admitted = sum(arrival.admitted and start <= arrival.at < end for arrival in arrivals)
    return admitted / (end - start) / per_second


# --- in the process of the server -------------------------------------------------------------------------------------


class _Counter:
    """Counts the arrivals on all connections."""

    def __init__(self, conditions: Conditions) -> None:
        self.log: list[Arrival] = []
        self.latency = conditions.latency
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._window = Window(conditions.limit)

    def delay(self) -> float:
        return self._random.uniform(0.0, self._conditions.jitter)

    def count(self, number: int, at: float) -> int:
        """Count a request that arrived `at`; return the status of its answer."""
        admitted = self._window.admit(at)
        self.log.append(Arrival(at, number, admitted))
        return 200 if admitted else 429


class _Connection(Connection):
    """Answers requests of one event, whose product is the number of the request."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self._counter = counter

    def request_received(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        # The request is counted at the random time that was drawn, even if the timer fires later on a busy machine.
        at = loop.time() + self._counter.delay()
        [number] = _NUMBER.findall(request.body)
        loop.call_at(at, self._count, int(number), at)

    def _count(self, number: int, at: float) -> None:
        answer = _ANSWERS[self._counter.count(number, at)]
        asyncio.get_running_loop().call_later(self._counter.latency, self.transport.write, answer)


def _main(pipe: Pipe, conditions: Conditions) -> None:
    asyncio.run(_serve(pipe, conditions))


async def _serve(pipe: Pipe, conditions: Conditions) -> None:
    loop = asyncio.get_running_loop()
    counter = _Counter(conditions)
    server = await loop.create_server(lambda: _Connection(counter), "127.0.0.1", 0)
    stop = asyncio.Event()
    loop.add_reader(pipe.fileno(), stop.set)
    pipe.send(server.sockets[0].getsockname()[1])
    await stop.wait()
    loop.remove_reader(pipe.fileno())
    pipe.send(counter.log)
