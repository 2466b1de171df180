"""Measures what the order of each visitor's events costs, against a server that needs 0.1 s to 5 s for a batch.

Each row of the first two tables is one client under an open load: events come at a fixed rate, even if the client is
slower. A judge (a server in a process of its own) counts requests that overlap and events out of order. The other
tables show the cost of ordering an event, and the cost of a request by the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from itertools import cycle
from typing import TYPE_CHECKING, Any, Self

import attrs

from benchmarks import pools, queues, visitors
from benchmarks.support import judge, sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import resident
from benchmarks.support.progress import report
from benchmarks.support.section import Cell, Demand, Section, Table
from benchmarks.support.spread import percentile
from benchmarks.traffic import EVERY, client, paced
from retailrocket_async import Batching, Buffer, BufferFullError, LocalLimiter, RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.support.judge import Exchange, Verdict
    from benchmarks.support.section import Effort
    from retailrocket_async import Permit

_LATENCIES = (0.1, 0.5, 1.5, 5.0)
"""Seconds until a batch is answered; the API takes 1.5 s or more."""

_VISITORS = (1, 100, 4_000, 100_000)
_RATE = 24_000
"""Events a second of the full load: 98 % of what the limit allows with the default batches."""

_LIMIT = 24_390
"""The most events a second that the limit allows: 97.5 % of 50 requests of 500 events, due to `RateLimit.jitter`."""

_LIGHT = 0.82
"""The waits of quiet visitors' events are measured at this fraction of the possible rate."""

_SECONDS = 2.5
_SETTLING = 0.5
"""Seconds, in addition to one latency, after which a load is steady."""
_RAMP = 3
"""Number of latencies in which a load rises from zero to its full rate."""
_STEPS = 8
"""Number of steps in which a load rises."""

_TICK = 0.005
_CYCLE = 262_144
"""Number of events after which the sequence of visitors is repeated."""

_IN_FLIGHT = (1, 8, 32, 75, 100)

Figures = dict[str, Any]


def possible(latency: float, visitor_count: int) -> float:
    """Return the most events of the full load that can be delivered in a second.

    The rate is bounded by the limit, by the number of requests in flight, and by one batch in flight for each visitor.
    """
    each = Batching().max_events / latency
    of_visitors = sum(min(_RATE * share, each) for share in visitors.shares(visitor_count))
    return min(_RATE, _LIMIT, Batching().max_in_flight * each, of_visitors)


# --- one client under load, in its own process ------------------------------------------------------------------------


class _TimedLimiter:
    """Passes every call to the default limiter, and records how long each request waited for its permit."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._limiter = LocalLimiter(RateLimit())

    async def acquire(self) -> Permit | None:
        begun = time.monotonic()
        permit = await self._limiter.acquire()
        self.waits.append(time.monotonic() - begun)
        return permit

    def pause_until(self, deadline: float) -> None:
        self._limiter.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        self._limiter.throttled(sent_at)


class _Process:
    """Records every lag of the event loop in ms, and the largest resident memory in bytes, while the block runs."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.memory = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _measure(self) -> None:
        now = time.monotonic
        while True:
            begun = now()
            await asyncio.sleep(_TICK)
            self.lags.append((now() - begun - _TICK) * 1e3)
            if len(self.lags) % 20 == 0:
                self.memory = max(self.memory, resident())


class _Shop:
    """Tracks the events of the visitors and, if asked, of quiet visitors, each of whom has a single event.

    Attributes:
        refused: events that were not accepted, because the buffer, or the part of one visitor, was full.
        quiet: when each quiet visitor's event was tracked, by its number.
    """

    def __init__(self, port: int, visitor_count: int) -> None:
        self.limiter = _TimedLimiter()
        # With "raise" no call waits for space, so the rate of the load does not depend on the client.
        self.client = client(port, limiter=self.limiter, buffer=Buffer(overflow="raise"))
        self.refused = 0
        self.quiet: dict[int, float] = {}
        self._visitors: Iterator[str] = cycle(visitors.stream(visitor_count, _CYCLE))
        self._number = 0

    async def run(self, seconds: float, rate: float, *, quiet: bool = False) -> None:
        """Track `rate` events a second, and a quiet visitor's event every 5 ms if `quiet` is set."""
        owed = 0.0

        async def chunk(_: object) -> None:
            nonlocal owed
            if quiet:
                self.quiet[self._number] = time.monotonic()
                await self._track(f"{judge.QUIET}{self._number}")
            owed += rate * EVERY
            while owed >= 1:
                owed -= 1
                await self._track(next(self._visitors))
            # If events are tracked too late, this loop does not sleep, but must still let the client's tasks run.
            await asyncio.sleep(0)

        await paced(chunk, seconds=seconds)

    async def _track(self, visitor: str) -> None:
        number = self._number
        self._number = number + 1
        try:
            await self.client.view(session_external_id=visitor, product_id=number)
        except BufferFullError:
            self.refused += 1


async def load(port: int, latency: float, visitor_count: int, seconds: float) -> Figures:
    """Track at a part of the possible rate, with quiet visitors, then at the full rate; measure each for `seconds`."""
    shop = _Shop(port, visitor_count)
    memory = resident()
    light = _LIGHT * possible(latency, visitor_count)
    # The load rises slowly. If all visitors came at the same moment, the second events of all of them would wait for
    # the first answers, and would then be sent together, and quiet visitors would wait for this burst.
    for step in range(1, _STEPS + 1):
        await shop.run((_RAMP * latency + _SETTLING) / _STEPS, light * step / _STEPS)
    await shop.run(latency, light)
    shop.limiter.waits.clear()
    await shop.run(seconds, light, quiet=True)
    permits = shop.limiter.waits[:]
    await shop.run(latency + _SETTLING, _RATE)
    refused = shop.refused
    async with _Process() as process:
        began, cpu = time.monotonic(), time.process_time()
        await shop.run(seconds, _RATE)
        cpu, ended = time.process_time() - cpu, time.monotonic()
    refused = shop.refused - refused
    await shop.client.aclose(timeout=0.0)
    return {
        "light": light,
        "permits": permits,
        "quiet": list(shop.quiet.items()),
        "window": (began, ended),
        "refused": refused / (_RATE * seconds),
        "cpu": cpu / (_RATE * seconds) * 1e6,
        "lags": process.lags,
        "memory": process.memory - memory,
    }


# --- the section ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Row:
    """The figures of one client. Times are in ms unless the name says otherwise, rates in events a second.

    Attributes:
        latency: seconds until a batch is answered.
        visitors: the number of visitors.
        possible: the most events a second that can be delivered; see the function `possible`.
        delivered: events a second that the server answered.
        mean, most: requests in flight.
        overlaps: requests that overlapped with another one of the same visitor.
        disordered: visitors whose events were recorded out of order.
        refused: the fraction of the events for which the buffer had no space.
        cpu: CPU time of an event in µs.
        lag, worst: the lag of the event loop, p99 and worst.
        memory: growth of the resident memory in MiB.
        light: the rate at which the following figures were measured.
        quiet: from tracking a quiet visitor's event to the arrival of its request, p50 and p99.
        permit: the wait for a permit, p99.
    """

    latency: float
    visitors: int
    possible: float
    delivered: float
    mean: float
    most: int
    overlaps: int
    disordered: int
    refused: float
    cpu: float
    lag: float | None
    worst: float
    memory: float
    light: float
    quiet: tuple[float | None, float | None]
    permit: float | None

    @property
    def expected(self) -> float | None:
        """The time that a quiet visitor's event has to wait at least: the linger and the wait for a permit."""
        return None if self.permit is None else Batching().linger * 1e3 + self.permit


def _row(latency: float, visitor_count: int, figures: Figures, verdict: Verdict) -> Row:
    began, ended = figures["window"]
    within = [each for each in verdict.exchanges if began <= each.ended < ended]
    mean, most = in_flight(verdict.exchanges, began, ended)
    arrived = dict(verdict.quiet)
    # If an event never arrived, its wait counts as infinite.
    waits = [(arrived.get(number, float("inf")) - tracked) * 1e3 for number, tracked in figures["quiet"]]
    return Row(
        latency=latency,
        visitors=visitor_count,
        possible=possible(latency, visitor_count),
        delivered=sum(each.events for each in within) / (ended - began),
        mean=mean,
        most=most,
        overlaps=verdict.overlaps,
        disordered=verdict.disordered,
        refused=figures["refused"],
        cpu=figures["cpu"],
        lag=percentile(figures["lags"], 99),
        worst=max(figures["lags"]),
        memory=figures["memory"] / 2**20,
        light=figures["light"],
        quiet=(percentile(waits, 50), percentile(waits, 99)),
        permit=None if (wait := percentile(figures["permits"], 99)) is None else wait * 1e3,
    )


def in_flight(exchanges: Sequence[Exchange], began: float, ended: float) -> tuple[float, int]:
    """Return the mean and the largest number of requests in flight from `began` to `ended`."""
    spans = [(max(each.began, began), min(each.ended, ended)) for each in exchanges]
    spans = [(start, end) for start, end in spans if start < end]
    # If one request ends and another begins at the same moment, the end is counted first.
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return sum(end - start for start, end in spans) / (ended - began), most


def measure(effort: Effort) -> Section:
    """Measure each load only once, because it takes long; then the cost of ordering and of connections."""
    rows = []
    for latency in _LATENCIES[:2] if effort.quick else _LATENCIES:
        for visitor_count in (1, 4_000) if effort.quick else _VISITORS:
            report(f"order: {latency} s a batch, {visitor_count:,} visitors")
            # Answers come in groups, one latency apart, so the measured time must not be shorter than the latency.
            seconds = max(_seconds(effort), latency)
            arguments: Figures = {"latency": latency, "visitor_count": visitor_count, "seconds": seconds}
            with judge.running(latency) as server:
                figures = call("benchmarks.sections.order:load", port=server.port, **arguments)
                rows.append(_row(latency, visitor_count, figures, server.verdict()))
    report("order: the cost of an event in the queue")
    ordering = {
        count: call(
            "benchmarks.queues:cost",
            visitor_count=count,
            events=effort.count(50_000),
            rounds=1 if effort.quick else 5,
        )
        for count in (4_000, 100_000, 0)
    }
    report("order: the cost of a request by the number of connections")
    requests = _request_costs(effort)
    return Section(
        name="order",
        title="The order of each visitor's events",
        tables=(_full(rows), _light(rows), _ordering(ordering), _pools(requests)),
        demands=_demands(rows, ordering),
    )


def _seconds(effort: Effort) -> float:
    return _SECONDS / 5 if effort.quick else _SECONDS


def _request_costs(effort: Effort) -> dict[int, dict[str, Figures]]:
    costs: dict[int, dict[str, Figures]] = {}
    for count in _IN_FLIGHT[:2] if effort.quick else _IN_FLIGHT:
        with sink.running(latency=count / pools.REQUESTS) as server:
            costs[count] = {
                way: call(
                    "benchmarks.pools:request_cost",
                    port=server.port,
                    way=way,
                    in_flight=count,
                    seconds=_seconds(effort),
                )
                for way in pools.WAYS
            }
    return costs


def _full(rows: Sequence[Row]) -> Table:
    return Table(
        title=f"{_RATE:,} events a second, an open load",
        columns=(
            "answer, s",
            "visitors",
            "possible, events/s",
            "delivered, events/s",
            "in flight, mean",
            "most",
            "overlaps",
            "out of order",
            "refused, %",
            "CPU, µs/event",
            "lag p99, ms",
            "lag worst, ms",
            "memory, MiB",
        ),
        rows=tuple(
            (
                row.latency,
                row.visitors,
                round(row.possible),
                round(row.delivered),
                round(row.mean, 1),
                row.most,
                row.overlaps,
                row.disordered,
                round(row.refused * 100, 1),
                row.cpu,
                row.lag,
                row.worst,
                row.memory,
            )
            for row in rows
        ),
        note=(
            f"Default options, except that a full buffer refuses events. The busiest of 4,000 visitors makes "
            f"{visitors.shares(4_000)[0]:.2%} of the events. Possible: the smallest of the offer, the limit, "
            f"{Batching().max_in_flight} requests in flight, and one batch of {Batching().max_events} events in flight "
            "for each visitor: one visitor alone cannot go faster. Overlaps: requests that began while another with "
            "an event of the same visitor had no answer; out of order: visitors with an event recorded after a later "
            "one. Both are counted by the server, in a process of its own, over the whole run. CPU time of the "
            "client's process for each offered event, refused ones included; the lag includes the load itself, which "
            "comes every 5 ms. Memory: growth of the process since the client was made."
        ),
    )


def _light(rows: Sequence[Row]) -> Table:
    cells: list[tuple[Cell, ...]] = [
        (row.latency, row.visitors, round(row.light), *row.quiet, row.permit, row.expected, _beyond(row))
        for row in rows
    ]
    return Table(
        title=f"The wait of a quiet visitor's event, at {_LIGHT:.0%} of the possible rate",
        columns=(
            "answer, s",
            "visitors",
            "load, events/s",
            "p50, ms",
            "p99, ms",
            "permit p99, ms",
            "linger + permit, ms",
            "p99 beyond it, ms",
        ),
        rows=tuple(cells),
        note=(
            "From tracking the event until the first bytes of its request reach the server. Each of the 200 quiet "
            "events a second has a visitor of its own, beside the visitors of the load. Such an event should wait for "
            "the linger and for a permit, but not for the answer to another visitor's batch. The load has risen slowly "
            "before; after a load that begins at its full rate the event waits longer."
        ),
    )


def _beyond(row: Row) -> float | None:
    p99 = row.quiet[1]
    return None if p99 is None or row.expected is None else p99 - row.expected


def _ordering(costs: dict[int, dict[str, list[float]]]) -> Table:
    return Table(
        title="What ordering costs an event in the queue: append, take and release",
        columns=("visitors", "our queue, µs", "a plain list queue, µs", "difference, µs"),
        rows=tuple(
            (
                f"{count:,}" if count else "all different",
                statistics.median(each["ordered"]),
                statistics.median(each["plain"]),
                _difference(each),
            )
            for count, each in costs.items()
        ),
        note=(
            f"CPU time with {queues.IN_FLIGHT} batches in flight, medians of rounds that alternate in one process. The "
            "plain queue has the same bounds and counters, and keeps no order between batches. The difference is the "
            "median of the differences of the rounds."
        ),
    )


def _difference(costs: dict[str, list[float]]) -> float:
    return statistics.median(ordered - plain for ordered, plain in zip(costs["ordered"], costs["plain"], strict=True))


def _pools(costs: dict[int, dict[str, Figures]]) -> Table:
    return Table(
        title=f"CPU time of a request of 57 KB at {pools.REQUESTS} requests a second, by the number in flight",
        columns=("in flight", *(f"{title}, µs" for title in pools.WAYS.values()), "most in flight"),
        rows=tuple(
            (count, *(each[way]["cpu"] for way in pools.WAYS), max(each[way]["most"] for way in pools.WAYS))
            for count, each in costs.items()
        ),
        note=(
            "All by our transport. Our client holds connections in HTTP clients of one connection each. The other two "
            "columns use the same transport over one httpx.AsyncClient of 100 connections, and over several of 10."
        ),
    )


def _demands(rows: Sequence[Row], ordering: dict[int, dict[str, list[float]]]) -> tuple[Demand, ...]:
    demands = [
        Demand(what="overlapping requests", figure=sum(row.overlaps for row in rows), bound=0),
        Demand(what="visitors out of order", figure=sum(row.disordered for row in rows), bound=0),
        Demand(
            what="ordering an event, 4,000 visitors, above a plain queue",
            figure=_difference(ordering[4_000]),
            bound=0.6,
            unit="µs",
        ),
    ]
    for row in rows:
        if row.visitors == 4_000 and row.latency == 1.5:
            bound = 0.98 * _RATE
            what = "delivered, 1.5 s a batch, 4,000 visitors"
            demands.append(Demand(what=what, figure=row.delivered, bound=bound, unit="events/s", at_least=True))
        if row.visitors >= 4_000 and row.latency == 1.5 and (beyond := _beyond(row)) is not None:
            what = f"quiet visitor's wait, p99 beyond linger and permit, 1.5 s a batch, {row.visitors:,} visitors"
            demands.append(Demand(what=what, figure=beyond, bound=40.0, unit="ms"))
    return tuple(demands)
