"""One process of a fleet that shares a limit: more demand than the limit lets out, until it is told to stop.

The times that it notes are of the clock that all processes of the machine share, whatever its own event loop believes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis

from retailrocket_async import AsyncTrackingClient, Batching, Buffer, RetryPolicy
from retailrocket_async.redis import RedisLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from _process import Pipe

    from retailrocket_async import Limiter, Permit

NUMBERS = 1_000_000
"""Requests are numbered from this times the process's number."""

_SENDERS = 8

_now = time.monotonic


class Demand(NamedTuple):
    """What a process does.

    Attributes:
        number: of the process, from 0.
        api: the URL of the server that counts.
        redis: the URL of the Redis that they share.
        replicas: what the limiter is told.
        skew: seconds by which both clocks of this process are wrong.
    """

    number: int
    api: str
    redis: str
    replicas: int | None = None
    skew: float = 0.0


class Sending(NamedTuple):
    """When a request was granted and when it was written."""

    granted: float
    written: float


class Told(NamedTuple):
    """What a process has noted.

    Attributes:
        sendings: its requests, by their numbers.
        records: what was logged.
    """

    sendings: dict[int, Sending]
    records: list[str]


def main(pipe: Pipe, demand: Demand) -> None:
    """Say that the process is there; begin when told to, and say when the first request leaves; stop when told to.

    At the end tell what was noted.
    """
    pipe.send(0)
    pipe.recv()
    loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
    if demand.skew:
        clock = time.time
        time.time = lambda: clock() + demand.skew
        loop = _SkewedLoop(demand.skew)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        pipe.send(runner.run(_saturate(pipe, demand)))


class _SkewedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock began at another time."""

    def __init__(self, skew: float) -> None:
        self._skew = skew
        super().__init__()

    def time(self) -> float:
        return super().time() + self._skew


async def _saturate(pipe: Pipe, demand: Demand) -> Told:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    records = _Records()
    logger = logging.getLogger("retailrocket_async")
    logger.setLevel(logging.INFO)
    logger.addHandler(records)
    redis = Redis.from_url(demand.redis)
    noting = _Noting(RedisLimiter(redis, replicas=demand.replicas), NUMBERS * demand.number, lambda: pipe.send(0))
    client = AsyncTrackingClient(
        "key",
        "partner",
        base_url=demand.api,
        limiter=noting,
        # One event to a request, tried once: the n-th grant is the n-th event's.
        batching=Batching(max_events=1, linger=0.0, max_in_flight=_SENDERS),
        buffer=Buffer(max_events=_SENDERS),
        retry=RetryPolicy(max_attempts=1),
    )
    for number in itertools.count(NUMBERS * demand.number):
        if stop.is_set():
            break
        await client.view(session_external_id="visitor", product_id=number)
    await client.aclose()
    await redis.aclose()
    return Told(noting.sendings, records.texts)


class _Records(logging.Handler):
    """Keeps the texts of log records."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class _Noting:
    """Passes a limiter on to the client, and notes when each request was granted and written."""

    def __init__(self, limiter: Limiter, first: int, begun: Callable[[], None]) -> None:
        self._limiter = limiter
        self._begun = begun
        self._numbers = itertools.count(first)
        self.sendings: dict[int, Sending] = {}
        self.pause_until = limiter.pause_until
        self.throttled = limiter.throttled

    async def acquire(self) -> Permit:
        permit = await self._limiter.acquire()
        if not self.sendings:
            self._begun()
            self._begun = _nothing
        return _NotedPermit(self.sendings, next(self._numbers), permit)


def _nothing() -> None:
    """Say nothing."""


class _NotedPermit:
    def __init__(self, sendings: dict[int, Sending], number: int, permit: Permit | None) -> None:
        self._sendings = sendings
        self._number = number
        self._permit: Any = permit
        self._granted = _now()

    def sent(self) -> None:
        self._sendings[self._number] = Sending(self._granted, _now())
        self._permit.sent()

    def done(self, *, answered: bool = False) -> None:
        self._permit.done(answered=answered)
