"""Checks that the client keeps the request limit and uses it fully, with unlimited events and an exact server.

::

    python -m acceptance.limit [--seconds 30] [--repeat 1] [--limiter ours|bucket-only|all]
                               [--condition idle|blocked|busy|all] [--jitter 0.02] [--latency 0] [--json FILE]

With our limiter no request may be refused, and 97 % of the limit must be used, or 95 % if an answer takes 50 ms or
longer. This must be true with an idle event loop, and with a loop that is blocked for 5 ms again and again; otherwise
the exit status is 1. A busy loop, and `AsyncLimiter` alone, are measured for comparison only.

The columns:

- `requests` and `refused` count requests.
- `worst` is the largest number of arrivals in any one second.
- `used` is the rate of admitted requests as a percentage of the limit, without the first and the last second.
- `spread` is the longest time from writing a request to its arrival, minus the shortest time from its permit to its
  arrival, in milliseconds. If it is above `RateLimit.jitter`, the machine was too busy to judge the run.
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

from aiolimiter import AsyncLimiter

from acceptance.support import exact_server
from acceptance.support.exact_server import Conditions, used_share
from acceptance.support.recording_limiter import RecordingLimiter, spread
from benchmarks.support.window import worst_window
from retailrocket_async import AsyncTrackingClient, Batching, Buffer, LocalLimiter, RateLimit, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from acceptance.support.recording_limiter import Sending
    from retailrocket_async import Limiter, Permit

LIMIT = RateLimit()
SENDERS = 8


class BucketOnly:
    """A `Limiter` that uses only `AsyncLimiter` of the library aiolimiter, as aiolimiter's documentation shows it."""

    def __init__(self, max_rate: float, time_period: float) -> None:
        self._bucket = AsyncLimiter(max_rate, time_period)

    async def acquire(self) -> Permit | None:
        """Wait until `AsyncLimiter` grants the request."""
        await self._bucket.acquire()
        return None

    def pause_until(self, deadline: float) -> None:
        """Do nothing, because the server of this run asks for no pause."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing: `AsyncLimiter` cannot reduce its rate."""


OURS = "LocalLimiter"
LIMITERS: dict[str, Callable[[], Limiter]] = {
    OURS: lambda: LocalLimiter(LIMIT),
    "AsyncLimiter(50, 1)": lambda: BucketOnly(50, 1),
    "AsyncLimiter(1, 1/50)": lambda: BucketOnly(1, 1 / 50),
}


class Row(NamedTuple):
    """One line of the table; times are in seconds."""

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
        """The fraction of the limit that must be used."""
        return 0.95 if self.latency >= 0.05 else 0.97

    @property
    def missed(self) -> bool:
        """Whether the demand applies to this row, and the row does not meet it."""
        demanded = self.limiter == OURS and self.condition != "busy" and self.jitter <= LIMIT.jitter
        return demanded and (self.refused > 0 or self.used < self.wanted)


# --- sending as fast as the limit allows ---


async def saturate(url: str, limiter: Limiter, seconds: float) -> Mapping[int, Sending]:
    """Track more events than the limit allows, one in each request; return the times of each request."""
    clock = asyncio.get_running_loop().time
    recording = RecordingLimiter(limiter)
    client = AsyncTrackingClient(
        "key",
        "partner",
        base_url=url,
        limiter=recording,
        # Each request has one event and is tried once, so that the n-th permit belongs to the n-th event.
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
    return recording.sendings


# --- other work that the event loop has to do ---


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
    """Measure one row of the table."""

    async def demand(url: str) -> Mapping[int, Sending]:
        other_work = asyncio.create_task(CONDITIONS[condition]())
        try:
            return await saturate(url, LIMITERS[limiter](), seconds)
        finally:
            other_work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await other_work

    with exact_server.running(conditions) as server:
        sendings = asyncio.run(demand(server.url))
        arrivals = server.stop()
    return Row(
        limiter=limiter,
        condition=condition,
        jitter=conditions.jitter,
        latency=conditions.latency,
        requests=len(arrivals),
        refused=sum(not arrival.admitted for arrival in arrivals),
        worst=worst_window([arrival.at for arrival in arrivals]),
        used=used_share(arrivals, seconds, LIMIT.requests / LIMIT.per),
        spread=spread(arrivals, sendings),
    )


# --- the command ---


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each run, above 2 (default: 30)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each row, each with another seed (default: 1)")
    parser.add_argument("--limiter", choices=["ours", "bucket-only", "all"], default="all")
    parser.add_argument("--condition", choices=[*CONDITIONS, "all"], default="all")
    parser.add_argument("--jitter", type=float, default=0.02, help="largest random delay of an arrival in seconds")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from an arrival to its answer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    arguments = parser.parse_args()
    if arguments.seconds <= 2:
        parser.error("--seconds must be above 2: the first and the last second do not count")
    return arguments


def main() -> int:
    """Measure the chosen rows of the table; return the exit status."""
    arguments = _arguments()
    # The table shows refusals, so the client's log records are discarded. Without this handler they would be printed.
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
