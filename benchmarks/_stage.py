"""The stage of one scenario: a server that fails, a client, a stream of events, and the books about them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from _books import audit
from _fault import KEY, PARTNER, Conditions, Fault
from _shop import Shop
from _window import worst_window

from retailrocket_async import Abandoned, AsyncTrackingClient, Batching, BufferFullError, DeliveryError, RateLimit

if TYPE_CHECKING:
    from _books import Audit
    from _fault import Arrival, Report
    from _faulty_server import FaultyServer
    from _meters import LagMeter

    from retailrocket_async import CloseReport, Event, Outcome, Receipt, Stats

LIMIT = RateLimit()
SMALL = Batching(max_events=20, linger=0.01)
"""A thousand events a second at the limit, so that a few thousand are too many."""

_TICK = 0.01
"""Seconds between the events of a stream, which come in small groups."""


class Row(NamedTuple):
    """One line of the table; times in seconds, and None where the scenario has no such moment."""

    scenario: str
    tracked: int
    recorded: int
    delivered: int
    rejected: int
    abandoned: int
    dropped: int
    lost: int
    duplicated: int
    requests: int
    worst: int
    first: float | None
    settled: float | None
    lag: float
    server_lag: float
    broken: list[str]

    @property
    def judged(self) -> bool:
        """Whether the requests in one second count: a server that was late itself read its clock too late."""
        return self.server_lag <= LIMIT.jitter


class Stage:
    """What a scenario works with.

    Attributes:
        server: the server's process.
        client: the client, once `open` was called.
        receipts: the receipt of each accepted event, by its number.
        turned_away: events that found the buffer full and were not accepted.
        mended_at: when the fault ended; None where it has not.
        lag: the longest time in seconds by which the event loop was late, until the client was closed.
    """

    def __init__(self, server: FaultyServer, meter: LagMeter) -> None:
        self.server = server
        self.receipts: dict[int, Receipt] = {}
        self.turned_away = 0
        self.mended_at: float | None = None
        self.lag = 0.0
        self._meter = meter
        self._shop = Shop(seed=0)
        self._conditions = Conditions()
        self._settled_at: float | None = None
        self._watch: asyncio.Task[None] | None = None
        self._complaints: list[str] = []
        self._report: Report | None = None

    def open(self, **options: Any) -> AsyncTrackingClient:
        """Open the client; a request may take a second here, which is ten times what it should."""
        options = {"api_key": KEY, "timeout": 1.0, **options}
        self.client = AsyncTrackingClient(partner_id=PARTNER, base_url=self.server.url, **options)
        return self.client

    # --- the server ---

    async def behave(self, *faults: Fault, **conditions: Any) -> None:
        """Give the server these faults and no others; its other conditions stay where they are not named."""
        self._conditions = self._conditions._replace(faults=faults, **conditions)
        await self.server.behave(self._conditions)

    async def mend(self, **conditions: Any) -> None:
        """End all faults."""
        await self.behave(**conditions)
        self.mended()

    def mended(self) -> None:
        """Note that the fault is over, and watch until what was tracked before has its outcome."""
        self.mended_at = self.now()
        before = [receipt for receipt in self.receipts.values() if not receipt.done()]
        self._watch = asyncio.create_task(self._settling(before))

    async def arrivals(self, since: float = 0.0, until: float | None = None) -> list[Arrival]:
        """Return the requests that arrived in a time."""
        report = await self.server.report()
        return [arrival for arrival in report.arrivals if since <= arrival.at and (until is None or arrival.at < until)]

    # --- the events ---

    def event(self) -> tuple[int, Event]:
        """Return a new event and its number, for who tracks it himself and notes its receipt in `receipts`."""
        return self._shop.event()

    async def track(self, **event: Any) -> int:
        """Track one event; return its number, also where the buffer turned it away."""
        number, made = self._shop.event(**event)
        try:
            self.receipts[number] = await self.client.track(made)
        except BufferFullError:
            self.turned_away += 1
        return number

    async def send(self) -> None:
        """Send one event past the buffer."""
        number, event = self._shop.event()
        try:
            outcome: Outcome = await self.client.send(event)
        except DeliveryError as error:
            outcome = error.outcome
        except asyncio.CancelledError:
            # As the contract has it: whoever cancels is told no more.
            self._shop.settle(number, Abandoned(reason="cancelled", maybe_recorded=True))
            raise
        self._shop.settle(number, outcome)

    async def burst(self, events: int, **event: Any) -> None:
        """Track so many at once."""
        for _ in range(events):
            await self.track(**event)

    async def stream(self, seconds: float, rate: int, *, poison: int = 0) -> None:
        """Track `rate` events a second, `poison` events among them, evenly spread."""
        start = self.now()
        total = int(seconds * rate)
        poisoned = {total * (2 * number + 1) // (2 * poison) for number in range(poison)}
        tracked = 0
        for tick in range(1, math.ceil(seconds / _TICK) + 1):
            await asyncio.sleep(start + tick * _TICK - self.now())
            while tracked < min(total, tick * _TICK * rate):
                await self.track(poison=tracked in poisoned)
                tracked += 1

    def outcomes(self, name: str | None = None) -> list[Outcome | None]:
        """Return the outcomes of all events, or of those with a name."""
        return [receipt.outcome for receipt in self.receipts.values() if name in (None, receipt.event_name)]

    # --- the verdict ---

    def expect(self, kept: bool, complaint: str) -> None:  # noqa: FBT001 - an assertion that goes on
        """Note a complaint where a promise of this scenario is not kept."""
        if not kept:
            self._complaints.append(complaint)

    def expect_back_within(self, seconds: float) -> None:
        """Demand that what was tracked before the fault's end had its outcome so many seconds after it."""
        took = self._settling_time
        self.expect(took is not None and took <= seconds, f"back only after {took} s")

    async def recorded_twice(self) -> Counter[str]:
        """Return how many events of each name were recorded more than once."""
        counts = (await self.server.report()).counts
        return Counter(
            receipt.event_name for number, receipt in self.receipts.items() if counts[number : number + 1] > b"\x01"
        )

    async def close(self, timeout: float = 30.0) -> CloseReport:  # noqa: ASYNC109 - the client's own
        """Close the client, and note every outcome."""
        report = await self.client.aclose(timeout)
        # What follows takes a while, and is not the client's doing.
        self.lag = self._meter.worst
        for number, receipt in self.receipts.items():
            self._shop.settle(number, receipt.outcome)
        if self._watch is not None and report.stats.pending + report.stats.in_flight == 0:
            await self._watch
        self._report = await self.server.report()
        return report

    def audit(self) -> Audit:
        """Compare what was said with what was recorded, after the close."""
        assert self._report is not None
        return audit(bytes(self._shop.said), bytes(self._shop.names), self._report)

    async def row(self, scenario: str) -> Row:
        """Return the line of the table, with all that is broken."""
        report = self._report
        assert report is not None
        books = self.audit()
        worst = worst_window([arrival.at for arrival in report.arrivals])
        self.expect(report.strayed == 0, f"{report.strayed} connections followed a redirect")
        self.expect(report.malformed == 0, f"{report.malformed} malformed requests")
        row = Row(
            scenario=scenario,
            tracked=books.tracked,
            recorded=books.recorded,
            delivered=books.delivered,
            rejected=books.rejected,
            abandoned=books.abandoned,
            dropped=books.dropped,
            lost=books.lost,
            duplicated=books.duplicated,
            requests=len(report.arrivals),
            worst=worst,
            first=self._first_recorded(report),
            settled=self._settling_time,
            lag=self.lag,
            server_lag=report.lag,
            broken=[*books.complaints(), *_unbalanced(books, self.client.stats()), *self._complaints],
        )
        if row.judged and worst > LIMIT.requests:
            row.broken.append(f"{worst} requests in one second")
        return row

    def now(self) -> float:
        """Return the time on the clock that the server uses, too."""
        return asyncio.get_running_loop().time()

    def _first_recorded(self, report: Report) -> float | None:
        if self.mended_at is None:
            return None
        after = (arrival.at for arrival in report.arrivals if arrival.recorded and arrival.at >= self.mended_at)
        first = next(after, None)
        return None if first is None else first - self.mended_at

    @property
    def _settling_time(self) -> float | None:
        return None if self._settled_at is None or self.mended_at is None else self._settled_at - self.mended_at

    async def _settling(self, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            await receipt
        self._settled_at = self.now()


def _unbalanced(books: Audit, stats: Stats) -> list[str]:
    """Return a complaint for each of the client's own counters that says something else."""
    names = ("tracked", "delivered", "rejected", "abandoned", "dropped")
    told = [
        f"stats() says {getattr(stats, name)} {name}, the receipts {getattr(books, name)}"
        for name in names
        if getattr(stats, name) != getattr(books, name)
    ]
    settled = stats.delivered + stats.rejected + stats.abandoned + stats.dropped
    if stats.tracked != settled + stats.pending + stats.in_flight:
        told.append("the counters do not add up")
    return told
