"""What waiting events hold, and that neither a long run nor a long outage holds more and more. On Linux only."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import tracemalloc
from itertools import chain
from typing import TYPE_CHECKING, Any

import _child
import _process
import _sink
import _virtual
import httpx
from _alone import run
from _meters import resident
from _section import Cell, Demand, Section, Table
from _spread import mid
from _traffic import Callers, client, view, warm

from retailrocket_async import AsyncTrackingClient, Buffer, RateLimit

if TYPE_CHECKING:
    from _section import Effort

    from retailrocket_async import Permit

_BUFFERED = 100_000
"""Events in the buffer, its default bound."""

_SENT = 1_000_000
_HOUR = 3600.0
_OUTAGE_RATE = 50
"""Events a second that come during the outage, where the oldest make room for them."""

_MIB = 2**20

Figures = dict[str, Any]


# --- what is measured, each in a process of its own -------------------------------------------------------------------


class _Closed:
    """A limiter that lets nothing out, so that all events stay in the buffer."""

    async def acquire(self) -> Permit | None:
        await asyncio.Event().wait()
        raise AssertionError

    def pause_until(self, deadline: float) -> None:
        """Do nothing: it is closed."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing: it is closed."""


async def buffered(events: int, *, kept: bool, traced: bool) -> Figures:
    """Put so many views in the buffer, and return what each holds.

    Args:
        events: how many.
        kept: whether the caller keeps the receipts; the list itself is the caller's, and not counted.
        traced: whether tracemalloc counts; otherwise the process's resident memory is what grows.
    """
    ours = client(1, limiter=_Closed(), buffer=Buffer(max_events=2 * events))
    receipts: list[object] = [None] * events
    # Its first use makes what is there once: caches, the pump's task.
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
    """Send so many events, as fast as they go; return what the process held after each tenth, and its peak by then."""
    points: list[tuple[int, int, int]] = []
    async with client(port, lifted=True) as ours:
        await warm(ours)
        for number in range(events):
            await view(ours, number)
            if (number + 1) % (events // 10) == 0:
                # Linux counts in KiB.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                points.append((number + 1, resident(), peak))
    return {"points": points}


class _Refusing(httpx.AsyncBaseTransport):
    """A host on which nobody listens."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)


def outage(overflow: str, bound: int, seconds: float) -> Figures:
    """Have every connection refused for so long, with the buffer at its bound, on a virtual clock."""
    # The one line that tells of the outage would be an error of this process.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    return _virtual.run(_outage(overflow, bound, seconds))


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
    # Before anything is refused: a buffer that is full.
    for number in range(bound):
        await view(ours, number)
    crowd = Callers(ours, 10) if overflow == "wait" else None
    await asyncio.sleep(1.0)
    gc.collect()
    points = [(0.0, resident())]
    for step in range(12):
        if crowd is not None:
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
    if crowd is not None:
        await crowd.stop()
    await ours.aclose(timeout=0.0)
    return figures


# --- the section ------------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> Section:
    """Measure what is held, in a few rounds, then the long run and the outages once each: they take many seconds."""
    held: dict[tuple[bool, bool], list[Figures]] = {}
    for _ in range(min(2, effort.rounds)):
        for kept in (True, False):
            for traced in (True, False):
                figures = _child.call("_memory:buffered", events=effort.count(_BUFFERED), kept=kept, traced=traced)
                held.setdefault((kept, traced), []).append(figures)
    with _process.running(_sink.main, _sink.Sink()) as (port, _):
        run_of = _child.call("_memory:sent", port=port, events=effort.count(_SENT))
    outages = {
        overflow: _child.call(
            "_memory:outage",
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
    found = mid(each[name] for each in rounds)
    assert found is not None
    return found


def _held(by_kept: dict[tuple[bool, bool], float], json: float, events: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kept in (True, False):
        traced, grown = by_kept[kept, True], by_kept[kept, False]
        what = "kept" if kept else "dropped"
        rows.append((f"receipt {what}", traced, grown, json, max(traced, grown) / json))
    return Table(
        title="What one event in the buffer holds",
        columns=("", "tracemalloc, bytes", "resident, bytes", "its JSON, bytes", "larger / JSON"),
        rows=tuple(rows),
        note=(
            f"{events:,} views in a buffer that nothing leaves; medians. Tracemalloc counts what Python has asked "
            "for, resident memory what the process has got by it; each in processes of its own. The JSON counts one "
            "comma per event. The buffer needs the receipt for the outcome, so to drop one frees nothing before that. "
            "The caller's own list of receipts is not counted."
        ),
    )


def _sent(points: list[tuple[int, int, int]]) -> Table:
    chosen = [points[0], points[len(points) // 2], points[-1]]
    return Table(
        title="Events sent one after the other, limit lifted, default buffer",
        columns=("events", "resident, MiB", "peak so far, MiB", "peak / peak after a tenth"),
        rows=tuple((events, held / _MIB, peak / _MIB, round(peak / points[0][2], 3)) for events, held, peak in chosen),
        note="The whole process, interpreter and imports included. The peak is the kernel's, and forgets nothing.",
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
        title="An outage with the buffer at its bound",
        columns=(
            "overflow",
            "minutes",
            "tracked",
            "hold at the end",
            "given up",
            "requests",
            "before, MiB",
            "at the bound, MiB",
            "most, MiB",
            "after, MiB",
            "after / at the bound",
        ),
        rows=tuple(rows),
        note=(
            "Simulated: the event loop's clock is virtual, so that an hour takes seconds, and the HTTP client's "
            "transport refuses every connection; everything else is the package as it is, with default retries and "
            f"limit. With `wait` ten callers wait for room all the time; with `drop_oldest` {_OUTAGE_RATE} events a "
            "second come. Resident memory of the whole process, after a collection."
        ),
    )


if __name__ == "__main__":
    run(measure)
