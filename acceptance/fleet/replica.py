"""One process of the run in `acceptance.fleet.limit`: it tracks more events than the limit allows until it is stopped.

The process records times of the monotonic clock, which all processes of the machine share. The clock of its event loop
may be wrong on purpose.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from redis.asyncio import Redis

from acceptance.support.recording_limiter import RecordingLimiter
from retailrocket_async import AsyncTrackingClient, Batching, Buffer, RetryPolicy
from retailrocket_async.redis import RedisLimiter

if TYPE_CHECKING:
    from acceptance.support.recording_limiter import Sending
    from benchmarks.support.server_process import Pipe


NUMBERS = 1_000_000
"""The numbers of a process's requests start at the number of the process times this value."""

_SENDERS = 8


class Demand(NamedTuple):
    """The settings of a process.

    Attributes:
        number: the number of the process, from 0.
        api: the URL of the server that counts.
        redis: the URL of the shared Redis.
        replicas: the limiter's option `replicas`.
        skew: seconds by which the system clock and the loop's clock of this process are wrong.
    """

    number: int
    api: str
    redis: str
    replicas: int | None = None
    skew: float = 0.0


class Result(NamedTuple):
    """The result of a process.

    Attributes:
        sendings: the times at which each request was granted and written, by the number of the request.
        records: the messages that the process logged.
    """

    sendings: dict[int, Sending]
    records: list[str]


def main(pipe: Pipe, demand: Demand) -> None:
    """Run one process.

    It sends 0 through `pipe` when it is ready, and begins when it receives a message. It sends 0 again when its first
    request gets its permit. It ends when it receives another message, and then sends its `Result`.
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
    """An event loop whose clock is wrong by a constant number of seconds."""

    def __init__(self, skew: float) -> None:
        self._skew = skew
        super().__init__()

    def time(self) -> float:
        return super().time() + self._skew


async def _saturate(pipe: Pipe, demand: Demand) -> Result:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    records = _Records()
    logger = logging.getLogger("retailrocket_async")
    logger.setLevel(logging.INFO)
    logger.addHandler(records)
    redis = Redis.from_url(demand.redis)
    limiter = RedisLimiter(redis, replicas=demand.replicas)
    recording = RecordingLimiter(limiter, NUMBERS * demand.number, lambda: pipe.send(0))
    client = AsyncTrackingClient(
        "key",
        "partner",
        base_url=demand.api,
        limiter=recording,
        # Each request has one event and is tried once, so that the n-th permit belongs to the n-th event.
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
    return Result(recording.sendings, records.texts)


class _Records(logging.Handler):
    """A log handler that stores the messages of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
