"""Measures the memory of waiting events, of a long run and of a long outage; on Linux only."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import tracemalloc
from itertools import chain
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import resident
from benchmarks.support.section import Cell, Demand, Section, Table
from benchmarks.support.spread import median_of_rounds
from benchmarks.traffic import Callers, client, view, warm
from retailrocket_async import AsyncTrackingClient, Buffer, RateLimit
from tests.support import virtual_time

if TYPE_CHECKING:
    from benchmarks.support.section import Effort
    from retailrocket_async import Permit

_BUFFERED = 100_000
"""Number of events in the buffer: the default size of the buffer."""

_SENT = 1_000_000
_HOUR = 3600.0
_OUTAGE_RATE = 50
"""Events a second during the outage with `drop_oldest`; for each of them the buffer drops its oldest event."""

_MIB = 2**20

Figures = dict[str, Any]


# --- measurements, each in its own process ----------------------------------------------------------------------------


class _Closed:
    """A limiter that grants no permit, so that all events stay in the buffer."""

    async def acquire(self) -> Permit | None:
        await asyncio.Event().wait()
        raise AssertionError

    def pause_until(self, deadline: float) -> None:
        """Do nothing, as no request is ever sent."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing, as no request is ever sent."""


async def buffered(events: int, *, kept: bool, traced: bool) -> Figures:
    """Put views into the buffer; return the bytes of memory and the bytes of JSON of one view.

    Args:
        events: the number of views.
        kept: whether the caller keeps the receipts; the list that holds the receipts is not measured.
        traced: whether tracemalloc measures; otherwise the growth of the resident memory is measured.
    """
    ours = client(1, limiter=_Closed(), buffer=Buffer(max_events=2 * events))
    receipts: list[object] = [None] * events
    # The first events create caches and the sending task once, so they are tracked before the measurement.
    for number in range(1000):
        await view(ours, number)
    json = ours.stats().pending_bytes
    gc.collect()
    if traced:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] if traced else resident()
    for number in range(events):
        receipt = await view(ours, number)
        if kept:
            receipts[number] = receipt
    del receipt
    gc.collect()
    after = tracemalloc.get_traced_memory()[0] if traced else resident()
    figures = {"held": (after - before) / events, "json": (ours.stats().pending_bytes - json) / events}
    await ours.aclose(timeout=0.0)
    return figures


async def sent(port: int, events: int) -> Figures:
    """Send events as fast as possible; return the resident and the peak memory of the process after each tenth."""
    points: list[tuple[int, int, int]] = []
    async with client(port, lifted=True) as ours:
        await warm(ours)
        for number in range(events):
            await view(ours, number)
            if (number + 1) % (events // 10) == 0:
                # `ru_maxrss` is in KiB on Linux.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                points.append((number + 1, resident(), peak))
    return {"points": points}


class _Refusing(httpx.AsyncBaseTransport):
    """A transport that refuses every connection."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)


def outage(overflow: str, bound: int, seconds: float) -> Figures:
    """Simulate an outage of `seconds` with a full buffer, on a virtual clock; return the memory over time."""
    # Without this handler, logging would print the warning about the outage to the standard error.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    return virtual_time.run(_outage(overflow, bound, seconds))


async def _outage(overflow: str, bound: int, seconds: float) -> Figures:
    gc.collect()
    before = resident()
    ours = AsyncTrackingClient(
        "k",
        "p",
        base_url="http://127.0.0.1:1/1.0/",
        http_client=httpx.AsyncClient(transport=_Refusing(), trust_env=False),
        rate_limit=RateLimit(),
        buffer=Buffer(max_events=bound, overflow=overflow),  # type: ignore[arg-type]
    )
    # This fills the buffer before the first connection is refused.
    for number in range(bound):
        await view(ours, number)
    callers = Callers(ours, 10) if overflow == "wait" else None
    await asyncio.sleep(1.0)
    gc.collect()
    points = [(0.0, resident())]
    for step in range(12):
        if callers is not None:
            await asyncio.sleep(seconds / 12)
        else:
            for number in range(round(seconds / 12 * _OUTAGE_RATE)):
                await view(ours, number)
                await asyncio.sleep(1 / _OUTAGE_RATE)
        points.append((seconds * (step + 1) / 12, resident()))
    gc.collect()
    stats = ours.stats()
    figures = {"before": before, "points": points, "end": resident(), "tracked": stats.tracked}
    figures |= {"pending": stats.pending, "in_flight": stats.in_flight, "requests": stats.requests}
    figures |= {"abandoned": stats.abandoned, "dropped": stats.dropped}
    if callers is not None:
        await callers.stop()
    await ours.aclose(timeout=0.0)
    return figures


# --- the section ------------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> Section:
    """Measure waiting events in up to two rounds, then the long run and the outages once each, as they take long."""
    held: dict[tuple[bool, bool], list[Figures]] = {}
    for _ in range(min(2, effort.rounds)):
        for kept in (True, False):
            for traced in (True, False):
                figures = call(
                    "benchmarks.sections.memory:buffered", events=effort.count(_BUFFERED), kept=kept, traced=traced
                )
                held.setdefault((kept, traced), []).append(figures)
    with sink.running() as server:
        run_of = call("benchmarks.sections.memory:sent", port=server.port, events=effort.count(_SENT))
    outages = {
        overflow: call(
            "benchmarks.sections.memory:outage",
            overflow=overflow,
            bound=effort.count(_BUFFERED),
            seconds=_HOUR / (10 if effort.quick else 1),
        )
        for overflow in ("wait", "drop_oldest")
    }
    by_kept = {(kept, traced): _median(rounds, "held") for (kept, traced), rounds in held.items()}
    json = _median(list(chain.from_iterable(held.values())), "json")
    return Section(
        name="memory",
        title="Memory",
        tables=(_held(by_kept, json, effort.count(_BUFFERED)), _sent(run_of["points"]), _outages(outages)),
        demands=(
            Demand(
                what="a buffered event, its receipt kept, by the larger of both measures",
                figure=max(by_kept[True, True], by_kept[True, False]),
                bound=1.6 * json + 100,
                unit="bytes",
            ),
        ),
        series={
            "memory": {
                "sent": run_of["points"],
                "outage": {overflow: each["points"] for overflow, each in outages.items()},
            }
        },
    )


def _median(rounds: list[Figures], name: str) -> float:
    found = median_of_rounds(each[name] for each in rounds)
    assert found is not None
    return found


def _held(by_kept: dict[tuple[bool, bool], float], json: float, events: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kept in (True, False):
        traced, grown = by_kept[kept, True], by_kept[kept, False]
        what = "kept" if kept else "dropped"
        rows.append((f"receipt {what}", traced, grown, json, max(traced, grown) / json))
    return Table(
        title="Memory of one event in the buffer",
        columns=("", "tracemalloc, bytes", "resident, bytes", "its JSON, bytes", "larger / JSON"),
        rows=tuple(rows),
        note=(
            f"{events:,} views in a buffer that nothing leaves; medians. Tracemalloc counts the memory that Python "
            "asked for, resident memory the growth of the process; each is measured in processes of its own. The "
            "JSON counts one comma per event. The buffer keeps no receipt, so a caller that drops its receipts frees "
            "their memory. The caller's own list of receipts is not counted."
        ),
    )


def _sent(points: list[tuple[int, int, int]]) -> Table:
    chosen = [points[0], points[len(points) // 2], points[-1]]
    return Table(
        title="Events sent one after the other, limit lifted, default buffer",
        columns=("events", "resident, MiB", "peak so far, MiB", "peak / peak after a tenth"),
        rows=tuple((events, held / _MIB, peak / _MIB, round(peak / points[0][2], 3)) for events, held, peak in chosen),
        note="The whole process, with interpreter and imports. The peak is the kernel's figure for the whole run.",
    )


def _outages(outages: dict[str, Figures]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for overflow, each in outages.items():
        begin, end = each["points"][0][1], each["end"]
        rows.append(
            (
                overflow,
                round(each["points"][-1][0] / 60),
                each["tracked"],
                each["pending"] + each["in_flight"],
                each["abandoned"] + each["dropped"],
                each["requests"],
                each["before"] / _MIB,
                begin / _MIB,
                max(held for _, held in each["points"]) / _MIB,
                end / _MIB,
                round(end / begin, 3),
            )
        )
    return Table(
        title="An outage with a full buffer",
        columns=(
            "overflow",
            "minutes",
            "tracked",
            "waiting at the end",
            "given up",
            "requests",
            "before, MiB",
            "buffer full, MiB",
            "most, MiB",
            "after, MiB",
            "after / buffer full",
        ),
        rows=tuple(rows),
        note=(
            "Simulated: the event loop's clock is virtual, so that an hour takes seconds, and the HTTP client's "
            "transport refuses every connection; everything else is the unchanged package, with default retries and "
            f"limit. With `wait`, ten callers wait for free space all the time; with `drop_oldest`, {_OUTAGE_RATE} "
            "events a second are tracked. Resident memory of the whole process, after a garbage collection."
        ),
    )
