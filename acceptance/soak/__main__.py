"""Sends a million events to a server that fails at random, and checks that no event is lost and nothing leaks.

::

    python -m acceptance.soak [--events 1000000] [--seed 1] [--json FILE]

The command prints tables in Markdown, and below them every broken promise. The exit status is 1 if a promise is broken.
It runs on Linux only, because it reads memory and descriptors from `/proc`. These promises are checked:

- Every event has one outcome, and the client's counters agree with the outcomes.
- Every event that is reported as delivered was recorded. No event that is reported as not recorded was recorded.
- Only poison events were rejected, that is, events that the server refuses on purpose.
- No order was recorded twice. If another event was recorded twice, its outcome says that this may have happened.
- No request began while another request with an event of the same visitor was in flight. Retries and divided batches
  are included. Each visitor's events were recorded in the order in which they were tracked.
- Memory, descriptors and tasks do not grow from the second to the last fifth of the time.

The limit is raised so that a million events take minutes, and the waits between retries are short.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from acceptance.soak.fault_plan import FaultPlan
from acceptance.soak.visitors import Visitors
from acceptance.support import faulty_server
from acceptance.support.fault import NAMES, PARTNER, Report
from acceptance.support.reconciliation import REJECTED, Reconciliation, reconcile
from benchmarks.support.meters import LagMeter, Sample, Sampler
from benchmarks.support.window import worst_window
from retailrocket_async import AsyncTrackingClient, Batching, Buffer, Order, RateLimit, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async import CloseReport, Event, UndeliveredEvent

_MEBIBYTE = 1024 * 1024
_GROWTH = 8 * _MEBIBYTE
"""Growth of memory in bytes that is allowed, because the fill of the buffer varies."""

_FEW = 20
"""Growth in descriptors and tasks that is allowed, because the number of requests in flight varies."""


class Run(NamedTuple):
    """The result of a run.

    Attributes:
        visitors: the events and their outcomes.
        plan: the faults that happened.
        fifths: samples of memory, descriptors and tasks, divided into five parts of the run.
        closed: the report of the client's close.
        report: the report of the server.
        totals: the reported outcomes compared with the recorded events.
        reported: the outcomes that `on_outcome` got, by class name.
        seconds: the duration.
    """

    visitors: Visitors
    plan: FaultPlan
    fifths: list[list[Sample]]
    closed: CloseReport
    report: Report
    totals: Reconciliation
    reported: Counter[str]
    seconds: float


async def run(events: int, seed: int) -> Run:
    """Track the events while the server fails, close the client, and return the result."""
    now = asyncio.get_running_loop().time
    visitors, plan = Visitors(events, seed), FaultPlan(seed)
    reported: Counter[str] = Counter()

    def on_outcome(events: Sequence[UndeliveredEvent]) -> None:
        reported.update(type(event.outcome).__name__ for event in events)

    started_at = now()
    async with faulty_server.running(plan.normal) as server, LagMeter() as lag:
        options = _options(plan, seed)
        client = AsyncTrackingClient(partner_id=PARTNER, base_url=server.url, on_outcome=on_outcome, **options)
        sampler = Sampler(lag, lambda: visitors.settled)
        others = [asyncio.create_task(sampler.run()), asyncio.create_task(plan.run(server))]
        settling = asyncio.create_task(visitors.settle())
        await visitors.run(client)
        # Now the client has accepted the last event. From here on the server does not fail any more, so that the client
        # can deliver the events that are still in its buffer.
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        await plan.end(server)
        closed = await client.aclose(60.0)
        visitors.finish()
        await asyncio.wait([settling], timeout=10.0)
        visitors.give_up()
        report = await server.report()
    totals = reconcile(bytes(visitors.shop.outcomes), bytes(visitors.shop.names), report)
    return Run(visitors, plan, sampler.fifths(), closed, report, totals, reported, now() - started_at)


def _options(plan: FaultPlan, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)

    async def key() -> str:
        return plan.key

    def before_send(event: Event) -> Event | None:
        # One event in a thousand is dropped, as a shop drops the events of a visitor who has not given consent.
        return event if chance.random() > 0.001 else None

    return {
        "api_key": key,
        "before_send": before_send,
        "rate_limit": RateLimit(requests=250),
        "batching": Batching(max_events=100, linger=0.05),
        "buffer": Buffer(max_events=20_000, max_age=20.0),
        "retry": RetryPolicy(initial_backoff=0.05, max_backoff=1.0, at_most_once=(Order,)),
        "timeout": 1.0,
    }


# --- the check ---


def violations(run: Run, events: int) -> list[str]:
    """Return a sentence for each broken promise."""
    totals, stats, shop = run.totals, run.closed.stats, run.visitors.shop
    found = totals.violations()
    if totals.tracked != events:
        found.append(f"{totals.tracked} of {events} events were tracked")
    for name in ("tracked", "delivered", "rejected", "abandoned", "dropped"):
        if getattr(stats, name) != getattr(totals, name):
            found.append(f"stats() says {getattr(stats, name)} {name}, the receipts {getattr(totals, name)}")
    innocent = sum(code in REJECTED and number not in shop.bad for number, code in enumerate(shop.outcomes))
    if innocent:
        found.append(f"{innocent} events rejected that are no poison")
    order = NAMES.index(Order.wire_name)
    orders = sum(count > 1 and name == order for count, name in zip(run.report.counts, run.report.names, strict=True))
    if orders:
        found.append(f"{orders} orders recorded twice")
    undelivered = totals.rejected + totals.abandoned + totals.dropped - run.visitors.raised
    if run.reported.total() + stats.hook_missed != undelivered:
        found.append(f"on_outcome got {run.reported.total()} of {undelivered} events, {stats.hook_missed} missed")
    return found + _server_findings(run.report) + growth(run.fifths)


def _server_findings(report: Report) -> list[str]:
    broken = {
        "connections followed a redirect": report.strayed,
        "malformed requests": report.malformed,
        "requests overlapped with another one of their visitors": report.overlaps,
        "visitors whose events are out of order": report.out_of_order,
    }
    return [f"{count} {what}" for what, count in broken.items() if count]


def growth(fifths: list[list[Sample]]) -> list[str]:
    """Return a sentence for each figure that grew by more than its limit from the second fifth to the last."""
    allowed = {"resident": _GROWTH, "descriptors": _FEW, "tasks": _FEW}
    found = []
    for name, more in allowed.items():
        early, late = (statistics.median(getattr(sample, name) for sample in fifths[part]) for part in (1, 4))
        if late > early + more:
            found.append(f"{name} grew from {early:,.0f} to {late:,.0f}")
    return found


# --- the tables ---


def tables(run: Run) -> str:
    """Return the tables of a run in Markdown."""
    totals, stats = run.totals, run.closed.stats
    answers = Counter(arrival.answer for arrival in run.report.arrivals)
    figures: dict[str, Any] = {
        **{name: getattr(totals, name) for name in ("tracked", "recorded", "delivered")},
        "rejected (poison)": f"{totals.rejected:,} ({run.visitors.poisoned:,})",
        **{name: getattr(totals, name) for name in ("abandoned", "dropped", "lost", "duplicated", "unannounced")},
        "overlapping requests": run.report.overlaps,
        "visitors out of order": run.report.out_of_order,
        "sent directly": run.visitors.direct,
        "requests": len(run.report.arrivals),
        "retries": stats.retries,
        "most requests in one second": worst_window([arrival.at for arrival in run.report.arrivals]),
        "seconds": round(run.seconds),
    }
    return "\n\n".join(
        [
            _table(["", "events or requests"], [[name, value] for name, value in figures.items()]),
            _table(["the server answered", "requests"], [[answer, count] for answer, count in sorted(answers.items())]),
            _table(["outage", "times"], [[name, count] for name, count in sorted(Counter(run.plan.outages).items())]),
            _table(
                ["fifth of the time", "events a second", "MiB", "descriptors", "tasks", "lag, median ms", "worst ms"],
                [_part(number, samples) for number, samples in enumerate(run.fifths, 1)],
            ),
        ]
    )


def _part(number: int, samples: list[Sample]) -> list[object]:
    first, last = samples[0], samples[-1]

    def median(name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in samples))

    return [
        number,
        round((last.settled - first.settled) / max(1.0, last.at - first.at)),
        round(median("resident") / _MEBIBYTE, 1),
        round(median("descriptors")),
        round(median("tasks")),
        round(median("lag") * 1000),
        round(max(sample.lag for sample in samples) * 1000),
    ]


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the command ---


def main() -> int:
    """Run the soak test; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="the number of events (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of events and faults (default: 1)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the samples and the broken promises to FILE"
    )
    arguments = parser.parse_args()
    if arguments.events < 100_000:
        parser.error("--events must be 100,000 or more: each fifth of the time must hold a sample")
    # The tables show the failures, so the client's log records are discarded. Without this handler they would be
    # printed.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    done = asyncio.run(run(arguments.events, arguments.seed))
    broken = violations(done, arguments.events)
    print(tables(done))
    print("\n" + ("\n".join(f"BROKEN: {violation}" for violation in broken) or "Every check holds."))
    if arguments.json is not None:
        samples = [sample._asdict() for part in done.fifths for sample in part]
        report = {"reconciliation": done.totals._asdict(), "samples": samples, "broken": broken}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
