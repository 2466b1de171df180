"""``demo``: sends a made-up day to an emulator, and checks that each event was recorded once and in order."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import attrs
import typer

from retailrocket_async import EVENT_TYPES, AsyncTrackingClient, Batching, Event, Stats
from retailrocket_async.cli._extras import needing_emulator
from retailrocket_async.cli._shop_day import shop_day
from retailrocket_async.cli._terminal import FAILED, Meter, print_err, print_result, reporting_errors, table

EPILOG = """
The emulator runs on this machine, in a process of its own, as long as the demo: nothing leaves the machine, and you
need neither a key nor a shop. It answers a batch after 1.5 s, as the API does, so many batches are under way at once.
The demo checks that no two of them have events of one visitor, and that no visitor's timestamps run backward. Batches
have 100 events here, so that the request limit is reached; with the client's default of 500 the same limit lets five
times as many events through.

\b
[bold]Examples[/bold]
  retailrocket-async demo
  retailrocket-async demo --events 100000 --seed 7

[bold]Exit status[/bold]: 0 every event arrived exactly once, in order and within the limit, 1 there was a difference
(printed), 2 wrong arguments, 130 interrupted by Ctrl-C.
"""

_LIMIT = 50
_PER_REQUEST = 100
_BATCH_LATENCY = 1.5


def demo(
    *,
    events: Annotated[int, typer.Option(min=1, help="How many events the day has.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Another number makes another day.")] = 1,
) -> None:
    """Send a made-up day of a shop to an emulator of the API, and compare what was sent with what was recorded."""
    with reporting_errors(), needing_emulator():
        from retailrocket_async.emulator import Settings, emulator_process  # noqa: PLC0415 - an extra

    settings = Settings(limit=_LIMIT, batch_latency=_BATCH_LATENCY)
    with reporting_errors(), emulator_process(settings) as emulator:
        # The comparison shows all errors. This handler prevents Python from printing the package's log records, too.
        logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
        client = AsyncTrackingClient(
            settings.api_key,
            settings.partner_id,
            base_url=emulator.url,
            batching=Batching(max_events=_PER_REQUEST),
        )
        with Meter("sending a day of a shop", events) as meter:
            sent = asyncio.run(_send(client, shop_day(events, seed), meter))
        recorded = emulator.stats()
    raise typer.Exit(_conclude(sent, recorded))


@attrs.frozen
class Sent:
    """Stores what was sent: the number of events by name, the client's counters, and the elapsed seconds."""

    by_name: Counter[str]
    stats: Stats
    elapsed: float


async def _send(client: AsyncTrackingClient, day: Iterator[Event], meter: Meter) -> Sent:
    by_name, begun = Counter[str](), time.monotonic()

    async def watch() -> None:
        while True:
            settled = client.stats().delivered
            meter.show(settled, settled, time.monotonic() - begun)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        for event in day:
            await client.track(event)
            by_name[event.event_name] += 1
        await client.flush()
        elapsed = time.monotonic() - begun
        report = await client.aclose()
    finally:
        watching.cancel()
        # Do not wait for the remaining events: after an interruption the emulator stops, too, so these events cannot be
        # delivered.
        await client.aclose(0)
    return Sent(by_name, report.stats, elapsed)


def _conclude(sent: Sent, recorded: dict[str, Any]) -> int:
    """Print the tables and all differences between sent and recorded events, and return the exit status."""
    _report(sent, recorded)
    found = list(differences(sent, recorded))
    for difference in found:
        print_err(f"error: {difference}")
    if found:
        return FAILED
    print_result("No two requests with events of one visitor overlapped, and no visitor's events were out of order.")
    print_result(
        f"All {sent.stats.tracked:,} events were recorded, each exactly once, and no request was over the limit."
    )
    return 0


def _report(sent: Sent, recorded: dict[str, Any]) -> None:
    names = [name for name in EVENT_TYPES if sent.by_name[name] or recorded["events"].get(name)]
    rows = [(name, sent.by_name[name], recorded["events"].get(name, 0)) for name in names]
    table("Events", ("type", "sent", "recorded"), [*rows, ("all", sent.by_name.total(), recorded["total_events"])])
    stats = sent.stats
    table(
        "Delivery",
        ("", ""),
        [
            ("delivered", stats.delivered),
            ("requests", recorded["requests"]),
            ("of them retries", stats.retries),
            ("refused, whatever the reason", recorded["refused"]),
            ("events per request", f"{recorded['total_events'] / max(1, recorded['requests']):.1f}"),
            ("bytes", recorded["bytes"]),
            ("seconds", f"{sent.elapsed:.2f}"),
            ("events per second", round(stats.delivered / sent.elapsed)),
            ("seconds until a batch was answered", _BATCH_LATENCY),
            (f"most requests in any second (limit {_LIMIT})", recorded["worst_window"]),
            ("overlaps of a visitor's requests", recorded["overlaps"]),
            ("visitors' timestamps that ran backward", recorded["backward_steps"]),
        ],
    )


def differences(sent: Sent, recorded: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each difference between what the client sent and what the emulator recorded."""
    for name in sorted({*sent.by_name, *recorded["events"]}):
        here, there = sent.by_name[name], recorded["events"].get(name, 0)
        if here != there:
            yield f"{here:,} {name} were sent and {there:,} recorded"
    if sent.stats.delivered != sent.by_name.total():
        yield f"{sent.by_name.total():,} events were sent and {sent.stats.delivered:,} are said to be delivered"
    if recorded["requests"] != sent.stats.requests:
        yield f"the client made {sent.stats.requests:,} requests and the emulator saw {recorded['requests']:,}"
    if recorded["refused"]:
        yield f"{recorded['refused']:,} requests were refused"
    if recorded["over_limit"] or recorded["worst_window"] > _LIMIT:
        yield f"the limit was broken: {recorded['worst_window']} requests arrived within one second"
    if recorded["overlaps"]:
        yield f"{recorded['overlaps']:,} times two requests with events of one visitor were under way at once"
    if recorded["backward_steps"]:
        yield f"{recorded['backward_steps']:,} times an event was older than one in an earlier request of its visitor"
