"""The environment of a scenario: a server that fails, a client, a stream of events, and a check of the outcomes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from acceptance.support.fault import KEY, PARTNER, Conditions, Fault
from acceptance.support.reconciliation import reconcile
from acceptance.support.shop import Shop
from benchmarks.support.window import worst_window
from retailrocket_async import Abandoned, AsyncTrackingClient, Batching, BufferFullError, DeliveryError, RateLimit

if TYPE_CHECKING:
    from acceptance.support.fault import Arrival, Report
    from acceptance.support.faulty_server import FaultyServer
    from acceptance.support.reconciliation import Reconciliation
    from benchmarks.support.meters import LagMeter
    from retailrocket_async import CloseReport, Event, Outcome, Receipt, Stats

LIMIT = RateLimit()
SMALL = Batching(max_events=20, linger=0.01)
"""Small batches: the request limit allows a thousand events a second, so a few thousand are an overload."""

BATCH_LATENCY = 0.3
"""Seconds until a batch is answered: less than the API takes, so that scenarios with small batches do not take long.
The scenarios of `latency` have a server that takes 1.5 s."""

_TICK = 0.01
"""Seconds between two groups of events in a stream."""


CONDITIONS = Conditions(batch_latency=BATCH_LATENCY)
"""The server's conditions without any fault."""


class Row(NamedTuple):
    """One line of the table. Times are in seconds; a time is None if the scenario has no such moment."""

    scenario: str
    tracked: int
    recorded: int
    delivered: int
    rejected: int
    abandoned: int
    dropped: int
    lost: int
    duplicated: int
    overlaps: int
    out_of_order: int
    requests: int
    worst: int
    first: float | None
    settled: float | None
    lag: float
    server_lag: float
    broken: list[str]

    @property
    def judged(self) -> bool:
        """Whether `worst` is valid. If the server's event loop was late, the server's times of arrival are wrong."""
        return self.server_lag <= LIMIT.jitter


class Testbed:
    """The server, the client and the events of one scenario.

    Attributes:
        server: controls the server's process.
        client: the client; set by `open`.
        receipts: the receipt of each accepted event, by the number of the event.
        refused: the number of events that were not accepted because the buffer was full.
        repaired_at: the time at which the fault ended; None before that.
        lag: the longest delay of the event loop in seconds, until the client was closed.
    """

    def __init__(self, server: FaultyServer, meter: LagMeter) -> None:
        self.server = server
        self.receipts: dict[int, Receipt] = {}
        self.refused = 0
        self.repaired_at: float | None = None
        self.lag = 0.0
        self._meter = meter
        self._shop = Shop(seed=0)
        self._conditions = CONDITIONS
        self._settled_at: float | None = None
        self._watch: asyncio.Task[None] | None = None
        self._violations: list[str] = []
        self._report: Report | None = None

    def open(self, **options: Any) -> AsyncTrackingClient:
        """Open the client; its requests time out after a second, ten times the expected response time."""
        options = {"api_key": KEY, "timeout": 1.0, **options}
        self.client = AsyncTrackingClient(partner_id=PARTNER, base_url=self.server.url, **options)
        return self.client

    # --- the server ---

    async def behave(self, *faults: Fault, **conditions: Any) -> None:
        """Replace the server's faults by `faults`, and change the conditions that are given."""
        self._conditions = self._conditions._replace(faults=faults, **conditions)
        await self.server.behave(self._conditions)

    async def repair(self, **conditions: Any) -> None:
        """End all faults."""
        await self.behave(**conditions)
        self.note_repair()

    def note_repair(self) -> None:
        """Record the time of the repair; from now on watch when all events tracked so far have outcomes."""
        self.repaired_at = self.now()
        before = [receipt for receipt in self.receipts.values() if not receipt.done()]
        self._watch = asyncio.create_task(self._settling(before))

    async def arrivals(self, since: float = 0.0, until: float | None = None) -> list[Arrival]:
        """Return the requests that arrived from `since` to before `until`, in seconds of the server's clock."""
        report = await self.server.report()
        return [arrival for arrival in report.arrivals if since <= arrival.at and (until is None or arrival.at < until)]

    # --- the events ---

    def event(self, group: str = "") -> tuple[int, Event]:
        """Return a new event and its number; the caller tracks it and puts its receipt into `receipts`."""
        return self._shop.event(group=group)

    async def track(self, **event: Any) -> int:
        """Track one event; return its number, even if the buffer was full and the event was not accepted."""
        number, made = self._shop.event(**event)
        try:
            self.receipts[number] = await self.client.track(made)
        except BufferFullError:
            self.refused += 1
        return number

    async def send(self) -> None:
        """Send one event directly, without the buffer."""
        number, event = self._shop.event()
        try:
            outcome: Outcome = await self.client.send(event)
        except DeliveryError as error:
            outcome = error.outcome
        except asyncio.CancelledError:
            # The caller of a cancelled `send` gets no outcome, so the outcome is stored that the delivery contract
            # names.
            self._shop.settle(number, Abandoned(reason="cancelled", maybe_recorded=True))
            raise
        self._shop.settle(number, outcome)

    async def burst(self, events: int, **event: Any) -> None:
        """Track this number of events without a pause."""
        for _ in range(events):
            await self.track(**event)

    async def stream(self, seconds: float, rate: int, *, poison: int = 0) -> None:
        """Track `rate` events a second; `poison` of these events make the server refuse their whole batch."""
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
        """Return the outcomes of all events, or only of events with this name."""
        return [receipt.outcome for receipt in self.receipts.values() if name in (None, receipt.event_name)]

    # --- the check ---

    def expect(self, kept: bool, violation: str) -> None:  # noqa: FBT001 - read like an assertion
        """Record that a promise of this scenario is broken, unless `kept` is True."""
        if not kept:
            self._violations.append(violation)

    def expect_back_within(self, seconds: float) -> None:
        """Expect that events tracked before the end of the fault have outcomes at most `seconds` after that end."""
        took = self._settling_time
        self.expect(took is not None and took <= seconds, f"settled only after {took} s")

    async def recorded_twice(self) -> Counter[str]:
        """Return how many events of each name were recorded more than once."""
        counts = (await self.server.report()).counts
        return Counter(
            receipt.event_name for number, receipt in self.receipts.items() if counts[number : number + 1] > b"\x01"
        )

    async def close(self, timeout: float = 30.0) -> CloseReport:  # noqa: ASYNC109 - passed to the client
        """Close the client, and store the outcomes of all events."""
        report = await self.client.aclose(timeout)
        # The rest of this method blocks the event loop. This delay is not caused by the client, so `lag` is read
        # before.
        self.lag = self._meter.worst
        for number, receipt in self.receipts.items():
            self._shop.settle(number, receipt.outcome)
        if self._watch is not None and report.stats.pending + report.stats.in_flight == 0:
            await self._watch
        self._report = await self.server.report()
        return report

    def reconcile(self) -> Reconciliation:
        """Compare the reported outcomes with the events that the server recorded; call this only after `close`."""
        assert self._report is not None
        return reconcile(bytes(self._shop.outcomes), bytes(self._shop.names), self._report)

    async def row(self, scenario: str) -> Row:
        """Return the scenario's line of the table, with the broken promises."""
        report = self._report
        assert report is not None
        totals = self.reconcile()
        worst = worst_window([arrival.at for arrival in report.arrivals])
        self.expect(report.strayed == 0, f"{report.strayed} connections followed a redirect")
        self.expect(report.malformed == 0, f"{report.malformed} malformed requests")
        self.expect(report.overlaps == 0, f"{report.overlaps} requests overlapped with another one of their visitors")
        self.expect(report.out_of_order == 0, f"events of {report.out_of_order} visitors out of order")
        row = Row(
            scenario=scenario,
            tracked=totals.tracked,
            recorded=totals.recorded,
            delivered=totals.delivered,
            rejected=totals.rejected,
            abandoned=totals.abandoned,
            dropped=totals.dropped,
            lost=totals.lost,
            duplicated=totals.duplicated,
            overlaps=report.overlaps,
            out_of_order=report.out_of_order,
            requests=len(report.arrivals),
            worst=worst,
            first=self._first_recorded(report),
            settled=self._settling_time,
            lag=self.lag,
            server_lag=report.lag,
            broken=[*totals.violations(), *_disagreements(totals, self.client.stats()), *self._violations],
        )
        if row.judged and worst > LIMIT.requests:
            row.broken.append(f"{worst} requests in one second")
        return row

    def now(self) -> float:
        """Return the time in seconds, on the clock that the server's process uses, too."""
        return asyncio.get_running_loop().time()

    def _first_recorded(self, report: Report) -> float | None:
        if self.repaired_at is None:
            return None
        after = (arrival.at for arrival in report.arrivals if arrival.recorded and arrival.at >= self.repaired_at)
        first = next(after, None)
        return None if first is None else first - self.repaired_at

    @property
    def _settling_time(self) -> float | None:
        return None if self._settled_at is None or self.repaired_at is None else self._settled_at - self.repaired_at

    async def _settling(self, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            await receipt
        self._settled_at = self.now()


def _disagreements(totals: Reconciliation, stats: Stats) -> list[str]:
    """Return a sentence for each counter of the client that differs from the receipts."""
    names = ("tracked", "delivered", "rejected", "abandoned", "dropped")
    found = [
        f"stats() says {getattr(stats, name)} {name}, the receipts {getattr(totals, name)}"
        for name in names
        if getattr(stats, name) != getattr(totals, name)
    ]
    settled = stats.delivered + stats.rejected + stats.abandoned + stats.dropped
    if stats.tracked != settled + stats.pending + stats.in_flight:
        found.append("tracked differs from settled + pending + in flight")
    return found
