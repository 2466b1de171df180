"""Measures the event-loop lag while events are tracked, and the cost of a steady stream of events.

The lag is the time by which `asyncio.sleep(0.001)` exceeds its millisecond. An idle loop lags, too, because of the
selector's clock and of other programs. So the idle loop is measured first, in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.section import Cell, Demand, Section, Table
from benchmarks.support.spread import histogram, percentile
from benchmarks.support.window import worst_window
from benchmarks.traffic import FULL_STREAM, RATE, Callers, client, fill, paced, view, warm
from retailrocket_async import Buffer, BufferFullError

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.support.section import Effort

_TICK = 0.001
_ANSWER = 0.1
"""Seconds until the server answers: the API's expected time."""

_IDLE_SECONDS, _FLOW_SECONDS = 5.0, 15.0
"""Seconds for which an idle loop and a paced stream are measured, in all rounds together."""

_BURST = 200_000
_SUSTAINED_SECONDS = 20.0
_SETTLING = 1.0
"""Seconds until a stream has its steady rate."""

_CROWD = 100
"""The number of concurrent callers in the second of the two steady streams."""

_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
"""Edges of the histogram's buckets in ms."""

Figures = dict[str, Any]


class _Watch:
    """Records the lag of the event loop while the block runs.

    Attributes:
        late: every measured lag in ms.
        own: the CPU time in ms of this process during the worst lag; other programs ran for the rest of that lag.
    """

    def __init__(self) -> None:
        self.late: list[float] = []
        self.own = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._measure())
        # This lets the measuring task begin its first sleep before the block runs.
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # This wait lets the measuring task record a delay at the end of the block.
        await asyncio.sleep(2 * _TICK)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _measure(self) -> None:
        clock, worst = time.perf_counter, -1.0
        while True:
            cpu, begin = time.process_time(), clock()
            await asyncio.sleep(_TICK)
            late = (clock() - begin - _TICK) * 1e3
            self.late.append(round(late, 4))
            if late > worst:
                worst, self.own = late, (time.process_time() - cpu) * 1e3

    def figures(self) -> Figures:
        return {"late": self.late, "own": self.own}


# --- measurements, each in its own process ----------------------------------------------------------------------------


async def flow(port: int, idle: float, seconds: float) -> Figures:
    """Measure the lag of the idle loop, of the first use of a client, and of a stream of 20,000 events a second."""
    async with _Watch() as before:
        await asyncio.sleep(idle)
    async with _Watch() as first:
        ours = client(port)
        await (await view(ours, 0))
    await warm(ours)

    async def chunk(numbers: range) -> None:
        for number in numbers:
            await view(ours, number)

    async with _Watch() as during:
        await paced(chunk, seconds=seconds)
    await ours.aclose()
    return {"idle": before.figures(), "first": first.figures(), "flow": during.figures()}


async def burst(port: int, events: int, *, fits: bool) -> Figures:
    """Measure the lag while events are tracked without a pause; if `fits`, the buffer has room for all of them."""
    ours = client(port, buffer=Buffer(max_events=events + 1)) if fits else client(port)
    await warm(ours)
    async with _Watch() as during:
        for number in range(events):
            await view(ours, number)
    await ours.aclose(timeout=0.0)
    return during.figures()


async def sustained(port: int, seconds: float, callers: int) -> Figures:
    """Let callers track for `seconds`; return the measured period, the CPU share of a core and the rate."""
    ours = client(port)
    await warm(ours)
    # The buffer is full from the beginning, so that only the steady stream is measured.
    with contextlib.suppress(BufferFullError):
        fill(ours, Buffer().max_events + 1)
    crowd = Callers(ours, callers)
    await asyncio.sleep(_SETTLING)
    delivered, cpu, began = ours.stats().delivered, time.process_time(), time.time()
    await asyncio.sleep(seconds)
    ended, cpu = time.time(), time.process_time() - cpu
    delivered = ours.stats().delivered - delivered
    await crowd.stop()
    await ours.aclose(timeout=0.0)
    return {"began": began, "ended": ended, "share": cpu / (ended - began), "rate": delivered / (ended - began)}


# --- the section ------------------------------------------------------------------------------------------------------

_LOADS = {
    "idle": "idle, nothing sent yet",
    "first": "first use: client, connection, first answer",
    "flow": f"{RATE:,} events/s",
    "wait": "burst, default buffer",
    "fits": "burst, a buffer that fits all",
}


def measure(effort: Effort) -> Section:
    """Measure the lag in every round, then two steady streams: one of a single caller and one of many callers."""
    part = 0.1 if effort.quick else 1.0
    found: dict[str, list[Figures]] = {name: [] for name in _LOADS}
    with sink.running(latency=_ANSWER) as server:
        for number in range(effort.rounds):
            flowed = call(
                "benchmarks.sections.lag:flow",
                port=server.port,
                idle=_IDLE_SECONDS / effort.rounds * part,
                seconds=_FLOW_SECONDS / effort.rounds * part,
            )
            for name, figures in flowed.items():
                found[name].append(figures)
            # A burst takes seconds, so each kind is measured in every other round only.
            for name in ("wait", "fits"):
                if (name == "wait") == (number % 2 == 0) or effort.rounds == 1:
                    burst = call(
                        "benchmarks.sections.lag:burst",
                        port=server.port,
                        events=effort.count(_BURST),
                        fits=name == "fits",
                    )
                    found[name].append(burst)
    streams = [_stream(callers, _SUSTAINED_SECONDS * part) for callers in (1, _CROWD)]
    with sink.running(latency=_ANSWER) as server:
        # `bare_events` posts a batch every 20 ms, which is as often as the request limit allows.
        bare = call("benchmarks.contestants:bare_events", port=server.port, events=effort.count(_BURST), pause=0.02)
    late = {name: list(chain.from_iterable(each["late"] for each in rounds)) for name, rounds in found.items()}
    return Section(
        name="lag",
        title="Event loop and sustained throughput",
        tables=(_lags(found, late, effort.count(_BURST)), _throughput(streams, bare)),
        demands=_demands(late, streams),
        series={
            "lag": {name: histogram(late[name], _EDGES) for name in ("idle", "flow", "wait", "fits") if late[name]},
            "pace": [{"callers": each["callers"], "points": each["pace"]} for each in streams],
        },
    )


def _stream(callers: int, seconds: float) -> Figures:
    with sink.running(latency=_ANSWER, arrivals=True) as server:
        figures = call("benchmarks.sections.lag:sustained", port=server.port, seconds=seconds, callers=callers)
        arrivals = server.take()["arrivals"]
    began, ended = figures["began"], figures["ended"]
    within = [(at, events) for at, events in arrivals if began <= at < ended]
    requests = Counter(int(at - began) for at, _ in within)
    figures |= {
        "callers": callers,
        "received": sum(events for _, events in within) / (ended - began),
        "requests": len(within) / (ended - began),
        "worst": worst_window([at for at, _ in arrivals]),
        # `pace` is the number of requests in each whole second.
        "pace": [[second, requests[second]] for second in range(int(ended - began))],
    }
    return figures


def _lags(found: dict[str, list[Figures]], late: dict[str, list[float]], burst: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, what in _LOADS.items():
        if not late[name]:
            continue
        worst = max(found[name], key=lambda each: max(each["late"]))
        rows.append(
            (
                what,
                len(late[name]),
                percentile(late[name], 50),
                percentile(late[name], 99),
                max(worst["late"]),
                worst["own"],
            )
        )
    return Table(
        title="Event-loop lag: what `asyncio.sleep(0.001)` sleeps beyond its millisecond",
        columns=("load", "ticks", "p50, ms", "p99, ms", "worst, ms", "own CPU time in the worst, ms"),
        rows=tuple(rows),
        note=(
            "All ticks of all rounds together. The last column tells a late loop from a busy machine: it is the CPU "
            "time of the process itself, in all its threads, during the worst tick. Answers take 100 ms, the limit "
            f"is 50 requests a second; {RATE:,} events/s come in chunks of 100 every 5 ms; a burst is {burst:,} "
            "`await client.view(...)` in one loop, measured until the last call returns. The first use includes "
            "reading the certificate store, in a thread."
        ),
    )


def _throughput(streams: list[Figures], bare: Figures) -> Table:
    return Table(
        title="Demand without end: default batch size and limit, answers after 100 ms",
        columns=(
            "callers",
            "delivered, events/s",
            "received, events/s",
            "requests/s",
            "most requests in 1 s",
            "CPU share of a core",
            "CPU, µs/event",
        ),
        rows=(
            *(
                (
                    each["callers"],
                    each["rate"],
                    each["received"],
                    each["requests"],
                    each["worst"],
                    each["share"],
                    each["share"] / each["rate"] * 1e6,
                )
                for each in streams
            ),
            ("bare events", bare["rate"], None, None, None, bare["cpu"] * bare["rate"] / 1e6, bare["cpu"]),
        ),
        note=(
            "The buffer is full all the time. A single caller waits once for each batch, and then tracks 500 events "
            "in a row. Of many callers, each waits for free space for each of its events, in order, which costs a "
            "turn of the event loop. Received: as the server counts; delivered: as the client does. Bare events: see "
            "the contestants of the first section; here with a batch every 20 ms."
        ),
    )


def _demands(late: dict[str, list[float]], streams: list[Figures]) -> tuple[Demand, ...]:
    idle, flowing = percentile(late["idle"], 99), percentile(late["flow"], 99)
    demands = [
        Demand(what=f"lag at {RATE:,} events/s, worst", figure=max(late["flow"]), bound=30.0, unit="ms"),
    ]
    if idle is not None and flowing is not None:
        what = f"lag at {RATE:,} events/s, p99 above the idle loop's"
        demands.insert(0, Demand(what=what, figure=flowing - idle, bound=5.0, unit="ms"))
    for each in streams:
        who = f"{each['callers']} caller(s) without end"
        demands += [
            Demand(
                what=f"{who}, delivered", figure=each["rate"], bound=0.95 * FULL_STREAM, unit="events/s", at_least=True
            ),
            Demand(what=f"{who}, CPU share of a core", figure=each["share"], bound=0.2),
        ]
    return tuple(demands)
