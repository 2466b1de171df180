"""How fast a relay is, and what an event costs it: a full stream, drained to a server that answers after 20 ms."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _fleet_brokers
import _sink
from _child import Meter, call
from _fleet_brokers import BROKERS
from _process import running
from _progress import tell
from _section import Demand, Section, Table

from retailrocket_async import AsyncTrackingClient, Batching, Codec, RateLimit, RetryPolicy, View
from retailrocket_async.relay import Relay, RelaySettings, source_from_url

if TYPE_CHECKING:
    from _section import Effort

_EVENTS = 300_000
_LATENCY = 0.02
_VISITORS = 20_000
_WARM_UP = 5_000

_FASTEST = 50_000
_DEAREST = 12.0
_QUARTER = 0.25


def envelopes(count: int) -> list[bytes]:
    """Return envelopes of many visitors, each with its number as the product."""
    codec = Codec()
    mark = _sink.MARK.decode()
    return [
        codec.encode(View(session_external_id=f"{mark}{number % _VISITORS}", product_id=number))
        for number in range(count)
    ]


def run(effort: Effort) -> Section:
    """Drain a full stream of every broker, without the limit and with it."""
    events = effort.count(_EVENTS)
    rows: list[tuple[Any, ...]] = []
    demands: list[Demand] = []
    for name, broker_of in BROKERS.items():
        for lifted in (True, False):
            count = events if lifted else min(events, 200_000)
            tell(f"relay: {name}, {'no limit' if lifted else 'the limit'}")
            runs = [_drained(broker_of, count, lifted=lifted) for _ in range(1 if effort.quick else 3)]
            figures = sorted(runs, key=lambda run: run["cpu"])[len(runs) // 2]
            rows.append(
                (
                    figures["broker"],
                    "none" if lifted else "50 requests/s",
                    figures["rate"],
                    figures["cpu"],
                    figures["share"],
                    figures["broker_cpu"],
                    figures["events"] / figures["requests"],
                    figures["lag"] * 1000,
                    count,
                )
            )
            if name != "redis":
                continue
            if lifted:
                demands += [
                    Demand(
                        what="events a second from Redis Streams, no limit",
                        figure=max(run["rate"] for run in runs),
                        bound=_FASTEST,
                        at_least=True,
                    ),
                    Demand(what="CPU of an event, no limit", figure=figures["cpu"], bound=_DEAREST, unit="µs"),
                ]
            else:
                demands += [
                    Demand(what="cores used at the default limit", figure=figures["share"], bound=_QUARTER),
                    Demand(
                        what="part of the default limit that is used",
                        figure=figures["rate"] / 25_000,
                        bound=0.95,
                        at_least=True,
                    ),
                ]
    return Section(
        name="relay",
        title="The relay's speed",
        tables=(
            Table(
                title=f"A full stream, drained by one relay; the API answers after {_LATENCY * 1000:.0f} ms",
                columns=(
                    "broker",
                    "limit",
                    "events/s",
                    "relay CPU µs/event",
                    "cores",
                    "broker CPU µs/event",
                    "events/request",
                    "longest block of the loop, ms",
                    "events",
                ),
                rows=tuple(rows),
                note="The median run by CPU. CPU: user and system time of the process. "
                f"Events of {_VISITORS:,} visitors, in order for each.",
            ),
        ),
        demands=tuple(demands),
    )


def _drained(broker_of: Any, events: int, *, lifted: bool) -> dict[str, Any]:
    with broker_of() as broker, running(_sink.main, _sink.Sink(latency=_LATENCY)) as (port, pipe):
        asyncio.run(_fleet_brokers.publish(broker, envelopes(_WARM_UP + events)))
        before = _cpu_of(broker.pid)
        figures = call("_fleet_relay:drain", url=broker.url, port=port, events=events, lifted=lifted)
        books = _sink.taken(pipe)
        assert books["events"] == _WARM_UP + events, books
        return figures | {
            "broker": broker.name,
            "events": books["events"],
            "requests": books["requests"],
            "broker_cpu": (_cpu_of(broker.pid) - before) / books["events"] * 1e6,
        }


async def drain(url: str, port: int, events: int, *, lifted: bool) -> dict[str, Any]:
    """Run a relay as the command does, until it has settled all; measure it after a warm-up."""
    settings = RelaySettings(source=url, name="relay")
    client = AsyncTrackingClient(
        "k",
        "p",
        base_url=f"http://127.0.0.1:{port}/1.0/",
        rate_limit=None if lifted else RateLimit(),
        batching=Batching(ordered=True),
        retry=RetryPolicy(outlast=True),
        buffer=settings.buffer,
    )
    relay = Relay(source_from_url(url, name="relay"), client)
    running = asyncio.create_task(relay.run())
    while relay.stats().delivered < _WARM_UP:  # noqa: ASYNC110 - as a scrape of the metrics would
        await asyncio.sleep(0.001)
    begun = relay.stats().delivered
    looks: list[float] = []
    with Meter() as meter:
        while (stats := relay.stats()).delivered < _WARM_UP + events or stats.unsettled:
            asked = time.perf_counter()
            await asyncio.sleep(0.005)
            looks.append(time.perf_counter() - asked - 0.005)
    relay.stop()
    assert await running
    count = _WARM_UP + events - begun
    return {
        "rate": count / meter.wall,
        "cpu": meter.cpu / count * 1e6,
        "share": meter.cpu / meter.wall,
        "lag": max(looks),
    }


def _cpu_of(pid: int) -> float:
    """Return the seconds of user and system time of a process; on Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
