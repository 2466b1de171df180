"""How well the limit is kept and used, under demand without end: against a server that counts exactly.

::

    python benchmarks/limit.py [--seconds 30] [--repeat 1] [--limiter ours|bucket-only|all]
                               [--condition idle|blocked|busy|all] [--jitter 0.02] [--latency 0] [--json FILE]

Demanded of ours, with an idle event loop and with one blocked 5 ms at a time: not one request refused, and 97 % of the
limit used; 95 % where an answer takes 50 ms or longer. The exit status is 1 where that is missed. A busy loop is shown,
and `AsyncLimiter` alone for comparison.

The columns: `worst` is the largest number of arrivals in any one second; `used` the admitted requests a second,
without the first and the last second, as a part of the limit; `spread` the difference in milliseconds between the
longest way of a request from its writing to its arrival, and the shortest from its grant. The promise ends where
`spread` is above `RateLimit.jitter`: there the machine was too busy with other things to judge by.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from _exact_server import Arrival, Conditions, running
from _window import worst_window
from aiolimiter import AsyncLimiter

from retailrocket_async import AsyncTrackingClient, Batching, Buffer, LocalLimiter, RateLimit, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from retailrocket_async import Limiter, Permit

LIMIT = RateLimit()
SENDERS = 8


class Textbook:
    """`AsyncLimiter` alone, as its documentation shows it."""

    def __init__(self, max_rate: float, time_period: float) -> None:
        self._bucket = AsyncLimiter(max_rate, time_period)

    async def acquire(self) -> Permit | None:
        """Wait for the bucket."""
        await self._bucket.acquire()
        return None

    def pause_until(self, deadline: float) -> None:
        """Do nothing: the server here asks for no pause."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing: it goes on at its rate."""


OURS = "LocalLimiter"
LIMITERS: dict[str, Callable[[], Limiter]] = {
    OURS: lambda: LocalLimiter(LIMIT),
    "AsyncLimiter(50, 1)": lambda: Textbook(50, 1),
    "AsyncLimiter(1, 1/50)": lambda: Textbook(1, 1 / 50),
}


class Sending(NamedTuple):
    """When a request was granted and when it was written, in seconds of the clock that the server uses, too."""

    granted: float
    written: float


class Row(NamedTuple):
    """One line of the table."""

    limiter: str
    condition: str
    jitter: float
    latency: float
    requests: int
    refused: int
    worst: int
    used: float
    spread: float

    @property
    def wanted(self) -> float:
        """The part of the limit that must be used."""
        return 0.95 if self.latency >= 0.05 else 0.97

    @property
    def missed(self) -> bool:
        """Whether this is ours and below the demand."""
        demanded = self.limiter == OURS and self.condition != "busy" and self.jitter <= LIMIT.jitter
        return demanded and (self.refused > 0 or self.used < self.wanted)


# --- the demand ---


class _Noting:
    """Passes a limiter on to the client, and notes when each request was granted and written."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._clock = asyncio.get_running_loop().time
        self.sendings: dict[int, Sending] = {}
        self._numbers = itertools.count()

    async def acquire(self) -> Permit:
        permit = await self._limiter.acquire()
        return _NotedPermit(self, next(self._numbers), permit)

    def pause_until(self, deadline: float) -> None:
        self._limiter.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        self._limiter.throttled(sent_at)

    def note(self, number: int, granted: float) -> None:
        self.sendings[number] = Sending(granted, self._clock())


class _NotedPermit:
    def __init__(self, noting: _Noting, number: int, permit: Permit | None) -> None:
        self._note = noting.note
        self._number = number
        self._permit = permit
        self._granted = asyncio.get_running_loop().time()

    def sent(self) -> None:
        self._note(self._number, self._granted)
        if self._permit is not None:
            self._permit.sent()

    def done(self, *, answered: bool = False) -> None:
        if self._permit is not None:
            self._permit.done(answered=answered)


async def saturate(url: str, limiter: Limiter, seconds: float) -> dict[int, Sending]:
    """Track more events than the limit lets out, one to a request; return when each request left, by its number."""
    clock = asyncio.get_running_loop().time
    noting = _Noting(limiter)
    client = AsyncTrackingClient(
        "key",
        "partner",
        base_url=url,
        limiter=noting,
        # One event to a request, tried once: the n-th grant is the n-th event's.
        batching=Batching(max_events=1, linger=0.0, max_in_flight=SENDERS),
        buffer=Buffer(max_events=SENDERS),
        retry=RetryPolicy(max_attempts=1),
    )
    end = clock() + seconds
    for number in itertools.count():
        if clock() >= end:
            break
        await client.view(session_external_id="visitor", product_id=number)
    await client.aclose()
    return noting.sendings


# --- the event loop's other work ---


async def _idle() -> None:
    await asyncio.sleep(0)


async def _blocked() -> None:
    block = time.sleep
    while True:
        block(0.005)
        await asyncio.sleep(0.005)


async def _busy() -> None:
    while True:
        sum(range(100))
        await asyncio.sleep(0)


CONDITIONS: dict[str, Callable[[], Coroutine[None, None, None]]] = {"idle": _idle, "blocked": _blocked, "busy": _busy}


# --- the measurement ---


def measure(limiter: str, condition: str, seconds: float, conditions: Conditions) -> Row:
    """Run one row."""

    async def demand(url: str) -> dict[int, Sending]:
        other_work = asyncio.create_task(CONDITIONS[condition]())
        try:
            return await saturate(url, LIMITERS[limiter](), seconds)
        finally:
            other_work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await other_work

    with running(conditions) as server:
        sendings = asyncio.run(demand(server.url))
        arrivals = server.arrivals()
    longest = max(arrival.at - sendings[arrival.number].written for arrival in arrivals)
    shortest = min(arrival.at - sendings[arrival.number].granted for arrival in arrivals)
    return Row(
        limiter=limiter,
        condition=condition,
        jitter=conditions.jitter,
        latency=conditions.latency,
        requests=len(arrivals),
        refused=sum(not arrival.admitted for arrival in arrivals),
        worst=worst_window([arrival.at for arrival in arrivals]),
        used=used_part(arrivals, seconds),
        spread=longest - shortest,
    )


def used_part(arrivals: list[Arrival], seconds: float) -> float:
    """Return the admitted requests a second as a part of the limit, without the first and the last second."""
    start = arrivals[0].at + 1.0
    end = arrivals[0].at + seconds - 1.0
    admitted = sum(arrival.admitted and start <= arrival.at < end for arrival in arrivals)
    return admitted / (end - start) / (LIMIT.requests / LIMIT.per)


# --- the command ---


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each run, above 2 (default: 30)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each row, each with another seed (default: 1)")
    parser.add_argument("--limiter", choices=["ours", "bucket-only", "all"], default="all")
    parser.add_argument("--condition", choices=[*CONDITIONS, "all"], default="all")
    parser.add_argument("--jitter", type=float, default=0.02, help="largest random delay of an arrival in seconds")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from an arrival to its answer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, too")
    arguments = parser.parse_args()
    if arguments.seconds <= 2:
        parser.error("--seconds must be above 2: the first and the last second do not count")
    return arguments


def main() -> int:
    arguments = _arguments()
    # What is refused is in the table.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    ours = {"ours": [OURS], "bucket-only": [name for name in LIMITERS if name != OURS], "all": list(LIMITERS)}
    conditions = list(CONDITIONS) if arguments.condition == "all" else [arguments.condition]
    print(f"{'limiter':<22} {'condition':<9} {'requests':>8} {'refused':>7} {'worst':>5} {'used %':>6} {'spread':>6}")
    rows = []
    for limiter, condition, seed in itertools.product(ours[arguments.limiter], conditions, range(arguments.repeat)):
        server = Conditions(LIMIT.requests, arguments.jitter, arguments.latency, seed)
        row = measure(limiter, condition, arguments.seconds, server)
        rows.append(row)
        print(
            f"{row.limiter:<22} {row.condition:<9} {row.requests:>8} {row.refused:>7} {row.worst:>5} "
            f"{row.used * 100:>6.1f} {row.spread * 1000:>6.1f}{'  MISSED' * row.missed}",
            flush=True,
        )
    if arguments.json is not None:
        report = [{**row._asdict(), "missed": row.missed} for row in rows]
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
