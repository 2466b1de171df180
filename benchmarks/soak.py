"""A million events through a server that fails in every way, at random: nothing is lost, and nothing is kept.

::

    python benchmarks/soak.py [--events 1000000] [--seed 1] [--json FILE]

Linux only: memory and descriptors are read from `/proc`. Prints tables in Markdown, and below them what is broken; then
the exit status is 1. Demanded: every event has one outcome, and the client's counters say the same; each delivered
event was recorded, and none that was rejected, dropped or said to be unrecorded; only poison events were rejected; no
order was recorded twice, and of other events only those of which the client said so; memory, descriptors and tasks of
the last fifth of the time are those of the second fifth.

The limit is raised, so that a million events take minutes, and the waits between retries are short.
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

from _books import REJECTED, Audit, audit
from _crowd import Crowd
from _fault import NAMES, PARTNER, Report
from _faulty_server import running
from _meters import LagMeter, Sample, Sampler
from _weather import Weather
from _window import worst_window

from retailrocket_async import AsyncTrackingClient, Batching, Buffer, Order, RateLimit, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async import CloseReport, Event, UndeliveredEvent

_MEBIBYTE = 1024 * 1024
_GROWTH = 8 * _MEBIBYTE
"""How much more memory the last fifth may hold: the buffer is fuller at one time than at another."""

_FEW = 20
"""How many more descriptors and tasks it may hold: eight batches and eight direct sends come and go."""


class Run(NamedTuple):
    """What is known at the end of a run."""

    crowd: Crowd
    weather: Weather
    fifths: list[list[Sample]]
    closed: CloseReport
    report: Report
    books: Audit
    heard: Counter[str]
    seconds: float


async def run(events: int, seed: int) -> Run:
    """Track the events while the weather changes, close, and gather what is known."""
    now = asyncio.get_running_loop().time
    crowd, weather = Crowd(events, seed), Weather(seed)
    heard: Counter[str] = Counter()

    def on_outcome(events: Sequence[UndeliveredEvent]) -> None:
        heard.update(type(event.outcome).__name__ for event in events)

    started_at = now()
    async with running(weather.fair) as server, LagMeter() as lag:
        options = _options(weather, seed)
        client = AsyncTrackingClient(partner_id=PARTNER, base_url=server.url, on_outcome=on_outcome, **options)
        sampler = Sampler(lag, lambda: crowd.settled)
        others = [asyncio.create_task(sampler.run()), asyncio.create_task(weather.blow(server))]
        settling = asyncio.create_task(crowd.settle())
        await crowd.run(client)
        for task in others:
            task.cancel()
        # The last batches fare like all others; then what is left has its chance.
        await asyncio.wait(others)
        await weather.calm(server)
        closed = await client.aclose(60.0)
        crowd.finish()
        await asyncio.wait([settling], timeout=10.0)
        crowd.give_up()
        report = await server.report()
    books = audit(bytes(crowd.shop.said), bytes(crowd.shop.names), report)
    return Run(crowd, weather, sampler.fifths(), closed, report, books, heard, now() - started_at)


def _options(weather: Weather, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)

    async def key() -> str:
        return weather.key

    def before_send(event: Event) -> Event | None:
        # The visitor did not agree, say.
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


# --- the verdict ---


def complaints(run: Run, events: int) -> list[str]:
    """Return a sentence for each promise that is broken."""
    books, stats, shop = run.books, run.closed.stats, run.crowd.shop
    found = books.complaints()
    if books.tracked != events:
        found.append(f"{books.tracked} of {events} events were tracked")
    for name in ("tracked", "delivered", "rejected", "abandoned", "dropped"):
        if getattr(stats, name) != getattr(books, name):
            found.append(f"stats() says {getattr(stats, name)} {name}, the receipts {getattr(books, name)}")
    innocent = sum(told in REJECTED and number not in shop.bad for number, told in enumerate(shop.said))
    if innocent:
        found.append(f"{innocent} events rejected that are no poison")
    order = NAMES.index(Order.wire_name)
    orders = sum(count > 1 and name == order for count, name in zip(run.report.counts, run.report.names, strict=True))
    if orders:
        found.append(f"{orders} orders recorded twice")
    undelivered = books.rejected + books.abandoned + books.dropped - run.crowd.raised
    if run.heard.total() + stats.hook_missed != undelivered:
        found.append(f"on_outcome was told of {run.heard.total()} of {undelivered} events, {stats.hook_missed} missed")
    if run.report.strayed:
        found.append(f"{run.report.strayed} connections followed a redirect")
    if run.report.malformed:
        found.append(f"{run.report.malformed} malformed requests")
    return found + growth(run.fifths)


def growth(fifths: list[list[Sample]]) -> list[str]:
    """Return a sentence for each thing of which more is held in the last fifth of the time than in the second."""
    allowed = {"resident": _GROWTH, "descriptors": _FEW, "tasks": _FEW}
    found = []
    for name, more in allowed.items():
        early, late = (statistics.median(getattr(sample, name) for sample in fifths[part]) for part in (1, 4))
        if late > early + more:
            found.append(f"{name} grew from {early:,.0f} to {late:,.0f}")
    return found


# --- the tables ---


def tables(run: Run) -> str:
    """Return what happened, in Markdown."""
    books, stats = run.books, run.closed.stats
    answers = Counter(arrival.answer for arrival in run.report.arrivals)
    totals = {
        **{name: getattr(books, name) for name in ("tracked", "recorded", "delivered")},
        "rejected (poison)": f"{books.rejected:,} ({run.crowd.poisoned:,})",
        **{name: getattr(books, name) for name in ("abandoned", "dropped", "lost", "duplicated", "unexplained")},
        "sent directly": run.crowd.direct,
        "requests": len(run.report.arrivals),
        "retries": stats.retries,
        "most requests in one second": worst_window([arrival.at for arrival in run.report.arrivals]),
        "seconds": round(run.seconds),
    }
    return "\n\n".join(
        [
            _table(["", "events or requests"], [[name, value] for name, value in totals.items()]),
            _table(["the server answered", "requests"], [[answer, count] for answer, count in sorted(answers.items())]),
            _table(["storm", "times"], [[name, count] for name, count in sorted(Counter(run.weather.storms).items())]),
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="how many (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the events and the faults (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples and what is broken here, too")
    arguments = parser.parse_args()
    if arguments.events < 20_000:
        parser.error("--events must be 20,000 or more: each fifth of the time must hold a sample")
    # What fails is in the tables.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    done = asyncio.run(run(arguments.events, arguments.seed))
    broken = complaints(done, arguments.events)
    print(tables(done))
    print("\n" + ("\n".join(f"BROKEN: {complaint}" for complaint in broken) or "Every check holds."))
    if arguments.json is not None:
        samples = [sample._asdict() for part in done.fifths for sample in part]
        report = {"books": done.books._asdict(), "samples": samples, "broken": broken}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
