"""Measures the duration of a call, and the time until the event of the call reaches the server.

A call is `await client.view(...)`: it makes, checks and encodes the event and puts the event into the buffer. The
duration includes everything that happens during the call: garbage collection, other tasks that the client lets run, and
other programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import GcMeter
from benchmarks.support.section import Cell, Demand, Section, Table
from benchmarks.support.spread import median_of_rounds, percentile
from benchmarks.traffic import FULL_STREAM, RATE, client, fill, paced, view, warm
from retailrocket_async import Batching, Buffer, BufferFullError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.support.section import Effort

_ANSWER = 0.1
"""Seconds until the server answers: the API's expected time."""

_FILLING = 40_000
"""Events a second: more than the request limit allows, so that the buffer fills up."""

_FULL = 10_000
"""Size of the full buffer in events; the size does not change the wait for free space."""

_SETTLING = 0.5
"""Seconds until space becomes free at the rate of the limit."""

_CROWD = 1_000
"""The number of callers that wait for free space at the same time."""

_PRODUCT = re.compile(rb'"productId":(\d+)')

Figures = dict[str, Any]


# --- measurements, each in its own process ----------------------------------------------------------------------------


async def one_by_one(port: int, events: int, *, at_once: bool) -> Figures:
    """Track one event into an empty buffer, await its receipt, and repeat that for all events.

    Args:
        port: the port of the server.
        events: the number of events.
        at_once: whether linger and limit are switched off, so that many calls take a short time; if False, the client
            has its defaults.
    """
    taken: list[float] = []
    called: list[float] = []
    options: dict[str, Any] = {"batching": Batching(linger=0.0), "lifted": True} if at_once else {}
    async with client(port, **options) as ours:
        await warm(ours)
        with GcMeter() as collector:
            for number in range(events):
                called.append(time.time())
                begin = time.perf_counter()
                receipt = await view(ours, number)
                taken.append(time.perf_counter() - begin)
                await receipt
    return _figures(taken, collector, called)


async def stream(port: int, seconds: float, rate: int) -> Figures:
    """Track `rate` events a second, in chunks every 5 ms."""
    taken: list[float] = []
    called: list[float] = []
    ours = client(port)
    track, clock, now = ours.view, time.perf_counter, time.time

    async def chunk(numbers: range) -> None:
        for number in numbers:
            visitor = f"{sink.MARK.decode()}{number % 1000:06d}"
            called.append(now())
            begin = clock()
            await track(session_external_id=visitor, product_id=number)
            taken.append(clock() - begin)

    await warm(ours)
    with GcMeter() as collector:
        await paced(chunk, seconds=seconds, rate=rate)
    most = ours.stats().pending
    # A full buffer would take too long to deliver, so its events are dropped.
    await ours.aclose(timeout=None if rate < FULL_STREAM else 0.0)
    return {**_figures(taken, collector, called), "pending": most}


async def full(port: int, seconds: float, callers: int) -> Figures:
    """Let callers track into a full buffer, which makes them wait."""
    taken: list[float] = []
    ours = client(port, buffer=Buffer(max_events=_FULL))
    await warm(ours)
    with contextlib.suppress(BufferFullError):
        fill(ours, _FULL + 1)
    ended = False

    async def caller() -> None:
        while not ended:
            begin = time.perf_counter()
            await view(ours, 0)
            taken.append(time.perf_counter() - begin)

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    # The first requests leave in a burst, so at first the buffer gets space faster than later, when the limit slows the
    # requests down. This time is not measured.
    await asyncio.sleep(_SETTLING)
    taken.clear()
    with GcMeter() as collector:
        await asyncio.sleep(seconds)
    figures = _figures(taken[:], collector, [])
    ended = True
    await asyncio.gather(*tasks)
    await ours.aclose(timeout=0.0)
    return figures


def _figures(taken: list[float], collector: GcMeter, called: list[float]) -> Figures:
    return {"taken": taken, "gc": collector.worst, "full_gc": collector.full, "called": called}


# --- the section ------------------------------------------------------------------------------------------------------

_CASES: dict[str, tuple[str, Figures]] = {
    "empty, default linger": ("one_by_one", {"at_once": False}),
    "empty, linger 0": ("one_by_one", {"at_once": True}),
    f"{RATE:,} events/s": ("stream", {"rate": RATE}),
    "filling": ("stream", {"rate": _FILLING}),
    "full, 1 caller": ("full", {"callers": 1}),
    f"full, {_CROWD:,} callers": ("full", {"callers": _CROWD}),
}
_IDLE, _EMPTY, _STEADY, _FILLS, _FULL_ONE, _FULL_CROWD = _CASES
_EVENTS = {_IDLE: 25, _EMPTY: 1_200}
_SECONDS = {_STEADY: 2.0, _FILLS: 1.5, _FULL_ONE: 1.5, _FULL_CROWD: 1.5}


def measure(effort: Effort) -> Section:
    """Measure all cases in every round."""
    found: dict[str, list[Figures]] = {name: [] for name in _CASES}
    with (
        sink.running(bodies=True) as quick,
        sink.running(latency=_ANSWER, bodies=True) as slow,
    ):
        for _ in range(effort.rounds):
            for name, (function, options) in _CASES.items():
                # Cases with one event at a time use the quick server, because with a slow one they would mostly wait.
                server = quick if name in _EVENTS else slow
                amount = (
                    {"events": effort.count(_EVENTS[name])}
                    if name in _EVENTS
                    else {"seconds": _SECONDS[name] / (10 if effort.quick else 1)}
                )
                figures = call(f"benchmarks.sections.latency:{function}", port=server.port, **amount, **options)
                received = server.take()
                figures["delivery"] = _delivery(figures["called"], received) if name in (_IDLE, _STEADY) else []
                found[name].append(figures)
    fills = _percentiles(found[_FILLS])
    return Section(
        name="latency",
        title="Latency",
        tables=(_calls(found), _waits(found), _deliveries(found)),
        demands=tuple(
            Demand(what=f"call, buffer filling, {name}", figure=figure, bound=bound, unit="µs")
            for name, figure, bound in (("p50", fills[0], 6.0), ("p99", fills[1], 30.0))
            if isinstance(figure, float)
        ),
        series={"latency": {name: [_percentiles([each]) for each in rounds] for name, rounds in found.items()}},
    )


def _delivery(called: list[float], received: dict[str, Any]) -> list[float]:
    """Return the seconds from each call until the server received its event, which its product number identifies."""
    delays = [
        at - called[int(product)]
        for (at, _), body in zip(received["arrivals"], received["bodies"], strict=True)
        for product in _PRODUCT.findall(body)
        if int(product) < len(called)
    ]
    assert len(delays) == len(called), (len(delays), len(called))
    return delays


def _percentiles(rounds: Iterable[Figures]) -> tuple[float | None, ...]:
    """Return p50, p99 and p99.9 of the durations of calls in µs, as medians of the rounds."""
    return tuple(
        median_of_rounds(
            None if (found := percentile(each["taken"], percent)) is None else found * 1e6 for each in rounds
        )
        for percent in (50, 99, 99.9)
    )


def _calls(found: dict[str, list[Figures]]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            sum(len(each["taken"]) for each in found[name]),
            *_percentiles(found[name]),
            max(map(max, (each["taken"] for each in found[name]))) * 1e6,
            max(each["gc"] for each in found[name]) * 1e6,
        )
        for name in (_IDLE, _EMPTY, _STEADY, _FILLS)
    ]
    pending = max(each["pending"] for each in found[_FILLS])
    return Table(
        title="A call of `await client.view(...)` while the buffer has space",
        columns=("buffer", "calls", "p50, µs", "p99, µs", "p99.9, µs", "worst, µs", "longest collection, µs"),
        rows=tuple(rows),
        note=(
            "Percentiles are medians of the rounds, and left out if a round had too few calls; the worst is of all "
            "rounds. Nothing is subtracted: one of every 200 calls in a row lets other tasks run and waits for them, "
            "and other programs of the machine are included. Empty: the previous event has its outcome, and the call "
            f"starts the task that sends. {RATE:,} events/s come in chunks of 100 every 5 ms. Filling: {_FILLING:,} a "
            f"second, more than 50 requests can take; {pending:,} events waited at the end. Answers take 100 ms; if "
            "events come one by one, they take no time."
        ),
    )


def _waits(found: dict[str, list[Figures]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, callers in ((_FULL_ONE, 1), (_FULL_CROWD, _CROWD)):
        taken = [each["taken"] for each in found[name]]
        mean = median_of_rounds(sum(each) / len(each) * 1e6 for each in taken)
        at_limit = callers / FULL_STREAM * 1e6
        rows.append(
            (callers, sum(map(len, taken)), mean, at_limit, *_percentiles(found[name]), max(map(max, taken)) * 1e6)
        )
    return Table(
        title="A call into a full buffer, which waits for free space",
        columns=(
            "callers",
            "calls",
            "mean, µs",
            "mean at the limit, µs",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "worst, µs",
        ),
        rows=tuple(rows),
        note=(
            f"At 50 requests a second with 500 events each, {FULL_STREAM:,} events a second find space: each of N "
            f"callers that wait together waits N / {FULL_STREAM:,} s in the mean. The limiter uses 97.5 % of that "
            "rate. A single caller waits about 20 ms for every 500th event, and not for the others. The longest "
            "waits are above the mean because of gaps: after requests that left together, the limiter lets nothing "
            "out until a second has passed."
        ),
    )


def _deliveries(found: dict[str, list[Figures]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, what in ((_IDLE, "idle, one event at a time"), (_STEADY, f"{RATE:,} events/s")):
        delays = [delay * 1e3 for delay in chain.from_iterable(each["delivery"] for each in found[name])]
        rows.append((what, len(delays), percentile(delays, 50), percentile(delays, 99), max(delays)))
    return Table(
        title="From the call until the server has received the event",
        columns=("load", "events", "p50, ms", "p99, ms", "worst, ms"),
        rows=tuple(rows),
        note=(
            "Default batch size, linger (100 ms) and limit; events of all rounds together; by the system's clock, "
            "which both processes read. Under load no event waits for the linger: a batch of 500 is full after 25 "
            "ms."
        ),
    )
