"""Shows that `Batching(realtime=True)` does not oscillate under any load; prints a table as Markdown.

Run it with `python -m benchmarks.realtime`. The engine, the buffer and the limiter are the real ones; the server is
scripted and the clock is virtual, so the figures are the same on every machine. The events of each load come at random
times (a Poisson process with a fixed seed), each from one of `VISITORS` visitors. The server answers a batch after
1.5 s and a single event after 0.1 s; the limit is 50 requests a second.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import attrs

from benchmarks.support.spread import percentile
from retailrocket_async import Batching, RateLimit
from retailrocket_async._delivery.rate_limiter import LocalLimiter
from retailrocket_async._events.codec import BATCH_PATH
from tests.support.engine_state import buffer_of
from tests.support.fakes import Engine, Request, ScriptedTransport, Step, now
from tests.support.virtual_time import CheckedLoop, run

LOADS: Final = {10: 120.0, 25: 120.0, 40: 120.0, 45: 120.0, 48: 120.0, 50: 120.0, 52: 120.0, 60: 120.0, 100: 120.0}
"""Loads: the number of events a second, and for how many seconds events come."""

BUSY_LOADS: Final = {1_000: 120.0, 24_000: 20.0}
"""Further loads, in the form of `LOADS`; measuring each of these takes long."""

VISITORS: Final = 4_000
WARMING: Final = 2.0
"""Seconds at the beginning of a load in which delivered events are not counted."""

STEP: Final = 0.005
"""Seconds between two groups of events; events of busy loads are tracked in groups."""


@attrs.frozen(kw_only=True)
class Figures:
    """The results of one load.

    Attributes:
        rate: events a second that were delivered, without the first `WARMING` seconds.
        changes: number of changes between single events and batches.
        alone: fraction of the events that were sent to their own endpoint.
        requests: requests a second.
        answered: seconds from `track` to the outcome of each event.
        out_of_order: number of events that were recorded after a later event of their visitor.
        overlaps: number of times that two requests with events of one visitor were in flight at once.
    """

    rate: float
    changes: int
    alone: float
    requests: float
    answered: list[float]
    out_of_order: int
    overlaps: int


class _Server(ScriptedTransport):
    """Answers as fast as the API, and remembers when each event was answered."""

    def __init__(self) -> None:
        super().__init__(then=self._answer)
        self.answered_at: dict[int, float] = {}

    def _answer(self, request: Request) -> Step:
        latency = 1.5 if request.path == BATCH_PATH else 0.1
        self.answered_at |= {number: request.at + latency for _, number in request.events}
        return Step(latency=latency)


async def _load(rate: int, seconds: float, *, realtime: bool) -> Figures:
    draw = random.Random(rate)
    server = _Server()
    engine = Engine(server, batching=Batching(realtime=realtime), limiter=LocalLimiter(RateLimit()))
    buffer = buffer_of(engine)
    buffer.singles = realtime
    changes, singles = 0, realtime

    def look() -> None:
        nonlocal changes, singles
        changes, singles = changes + (buffer.singles is not singles), buffer.singles

    # The checks that `Engine` makes in each turn of the loop are removed, because they would take most of the time.
    server.checks.clear()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CheckedLoop)
    loop.checks[:] = [look]
    tracked_at: list[float] = []
    began = due = now()
    one_by_one = rate < 1 / STEP
    while due < began + seconds:
        due += draw.expovariate(rate) if one_by_one else STEP
        await asyncio.sleep(due - now())
        for _ in range(1 if one_by_one else round(rate * STEP)):
            await engine.track(len(tracked_at), f"v{draw.randrange(VISITORS)}")
            tracked_at.append(now())
    requests = len(server.requests)
    await engine.flush()
    delivered = sum(began + WARMING < at <= began + seconds for at in server.answered_at.values())
    return Figures(
        rate=delivered / (seconds - WARMING),
        changes=changes,
        alone=sum(request.path != BATCH_PATH for request in server.requests) / len(tracked_at),
        requests=requests / seconds,
        answered=[server.answered_at[number] - at for number, at in enumerate(tracked_at)],
        out_of_order=_out_of_order(server.recorded),
        overlaps=len(server.overlaps),
    )


def _out_of_order(recorded: list[tuple[str, int]]) -> int:
    """Return the number of events that were recorded after a later event of their visitor."""
    latest: dict[str, int] = {}
    count = 0
    for visitor, number in recorded:
        count += number < latest.get(visitor, -1)
        latest[visitor] = max(number, latest.get(visitor, -1))
    return count


def measure(rate: int, seconds: float, *, realtime: bool = True) -> Figures:
    """Send `rate` events a second for `seconds` seconds of virtual time."""
    return run(_load(rate, seconds, realtime=realtime))


def row(load: str, seconds: float, figures: Figures) -> str:
    """Return the line of the table that shows these results."""
    p50, p99 = (percentile(figures.answered, percent) or 0.0 for percent in (50, 99))
    per_minute = figures.changes * 60 / seconds
    return (
        f"| {load} | {figures.rate:,.0f} | {per_minute:.1f} | {figures.alone:.0%} | {figures.requests:.0f}"
        f" | {p50:.2f} | {p99:.2f} | {figures.overlaps} | {figures.out_of_order} |"
    )


def main() -> None:
    """Measure all loads, and print the table."""
    print(
        "| events/s | delivered/s | changes/min | sent alone | requests/s"
        " | p50, s | p99, s | overlaps | out of order |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for rate, seconds in (LOADS | BUSY_LOADS).items():
        print(row(f"{rate:,}", seconds, measure(rate, seconds)), flush=True)
    busiest, seconds = list(BUSY_LOADS.items())[-1]
    print(row(f"{busiest:,}, default", seconds, measure(busiest, seconds, realtime=False)))


if __name__ == "__main__":
    main()
