"""How long a call takes at the caller's line, and how long it takes from there to the server.

A call is `await client.view(...)`: the event is made, checked, encoded and put in the buffer. Whatever happens during
it counts: the collector, the turns that the client gives others to run in, and other programs of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

import _child
import _process
import _sink
from _alone import run
from _meters import GcMeter
from _section import Cell, Demand, Section, Table
from _spread import mid, percentile
from _traffic import FULL_STREAM, RATE, client, fill, paced, view, warm

from retailrocket_async import Batching, Buffer, BufferFullError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _section import Effort

_ANSWER = 0.1
"""Seconds until the server answers: the API's expected time."""

_FILLING = 40_000
"""Events a second that fill the buffer, by what they are more than what may leave it."""

_FULL = 10_000
"""Events that the full buffer holds; how many makes no difference to the wait for room."""

_SETTLING = 0.5
"""Seconds until the room comes at the limit's pace."""

_CROWD = 1_000
"""Callers that wait for room at once."""

_PRODUCT = re.compile(rb'"productId":(\d+)')

Figures = dict[str, Any]


# --- what is measured, each in a process of its own -------------------------------------------------------------------


async def one_by_one(port: int, events: int, *, at_once: bool) -> Figures:
    """Track one event into an empty buffer, await its receipt, and so on.

    Args:
        port: the server's.
        events: how many.
        at_once: without linger and limit, so that there are many in a short time; otherwise as by default.
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
    """Track so many events a second, in chunks every 5 ms."""
    taken: list[float] = []
    called: list[float] = []
    ours = client(port)
    track, clock, now = ours.view, time.perf_counter, time.time

    async def chunk(numbers: range) -> None:
        for number in numbers:
            visitor = f"{_sink.MARK.decode()}{number % 1000:06d}"
            called.append(now())
            begin = clock()
            await track(session_external_id=visitor, product_id=number)
            taken.append(clock() - begin)

    await warm(ours)
    with GcMeter() as collector:
        await paced(chunk, seconds=seconds, rate=rate)
    most = ours.stats().pending
    # What may take its time to leave is not waited for: only a steady stream is followed to the server.
    await ours.aclose(timeout=None if rate < FULL_STREAM else 0.0)
    return {**_figures(taken, collector, called), "pending": most}


async def full(port: int, seconds: float, callers: int) -> Figures:
    """Have so many callers track into a full buffer that lets them wait."""
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
    # The first requests may go out at once, and their room comes at once.
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
    """Measure all cases, round after round."""
    found: dict[str, list[Figures]] = {name: [] for name in _CASES}
    with (
        _process.running(_sink.main, _sink.Sink(times=True)) as quick,
        _process.running(_sink.main, _sink.Sink(latency=_ANSWER, times=True)) as slow,
    ):
        for _ in range(effort.rounds):
            for name, (function, options) in _CASES.items():
                # What comes one by one would spend its time waiting for the answers.
                port, pipe = quick if name in _EVENTS else slow
                how_much = (
                    {"events": effort.count(_EVENTS[name])}
                    if name in _EVENTS
                    else {"seconds": _SECONDS[name] / (10 if effort.quick else 1)}
                )
                figures = _child.call(f"_latency:{function}", port=port, **how_much, **options)
                received = _sink.taken(pipe)
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
    """Return the seconds from each call to the server's receipt of its event, which its product tells."""
    delays = [
        at - called[int(product)]
        for (at, _), body in zip(received["arrivals"], received["bodies"], strict=True)
        for product in _PRODUCT.findall(body)
        if int(product) < len(called)
    ]
    assert len(delays) == len(called), (len(delays), len(called))
    return delays


def _percentiles(rounds: Iterable[Figures]) -> tuple[float | None, ...]:
    """Return p50, p99 and p99.9 of the calls in µs: medians of the rounds."""
    return tuple(
        mid(None if (found := percentile(each["taken"], percent)) is None else found * 1e6 for each in rounds)
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
        title="A call of `await client.view(...)` while there is room",
        columns=("buffer", "calls", "p50, µs", "p99, µs", "p99.9, µs", "worst, µs", "longest collection, µs"),
        rows=tuple(rows),
        note=(
            "Percentiles are medians of the rounds, and left out where a round had too few calls; the worst is of all. "
            "Nothing is subtracted: of every 200 calls in a row one lets others run and waits for them, and whatever "
            "else runs on the machine is in it. Empty: the event before has its receipt, and the call starts the task "
            f"that sends. {RATE:,} events/s come in chunks of 100 every 5 ms. Filling: {_FILLING:,} a second, more "
            f"than 50 requests can take; {pending:,} events waited at the end. Answers take 100 ms, but none where "
            "events come one by one."
        ),
    )


def _waits(found: dict[str, list[Figures]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, callers in ((_FULL_ONE, 1), (_FULL_CROWD, _CROWD)):
        taken = [each["taken"] for each in found[name]]
        mean = mid(sum(each) / len(each) * 1e6 for each in taken)
        demanded = callers / FULL_STREAM * 1e6
        rows.append(
            (callers, sum(map(len, taken)), mean, demanded, *_percentiles(found[name]), max(map(max, taken)) * 1e6)
        )
    return Table(
        title="A call into a full buffer, which waits for room",
        columns=(
            "callers",
            "calls",
            "mean, µs",
            "demanded by pacing, µs",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "worst, µs",
        ),
        rows=tuple(rows),
        note=(
            f"At 50 requests a second with 500 events each, {FULL_STREAM:,} callers a second find room: each of N "
            f"that wait at once waits N / {FULL_STREAM:,} s in the mean. The limit's guard uses 97.5 % of that. A "
            "caller that is alone waits about 20 ms for every 500th event, and not for the others. What the longest "
            "waits have above the mean are gaps: requests that once went out together may do so again a second later, "
            "and the limit's guard lets nothing out until then."
        ),
    )


def _deliveries(found: dict[str, list[Figures]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, what in ((_IDLE, "idle, one event at a time"), (_STEADY, f"{RATE:,} events/s")):
        delays = [delay * 1e3 for delay in chain.from_iterable(each["delivery"] for each in found[name])]
        rows.append((what, len(delays), percentile(delays, 50), percentile(delays, 99), max(delays)))
    return Table(
        title="From the call to the server's receipt of the event",
        columns=("load", "events", "p50, ms", "p99, ms", "worst, ms"),
        rows=tuple(rows),
        note=(
            "Default caps, linger (100 ms) and limit; events of all rounds together; by the system's clock, which both "
            "processes read. Under load no event lingers: a batch of 500 is full after 25 ms."
        ),
    )


if __name__ == "__main__":
    run(measure)
