"""Measures a relay's events per second and its cost per event; the stream is full, and the server answers in 20 ms."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
from redis.asyncio import Redis

from acceptance.fleet.brokers import BROKERS, WINDOW, publish
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import CostMeter, cpu_time
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table
from retailrocket_async import AsyncTrackingClient, Codec, RateLimit, RetryPolicy, View
from retailrocket_async.cli._collector import sparing_collector
from retailrocket_async.relay import Relay, RelaySettings, source_from_url

if TYPE_CHECKING:
    from benchmarks.support.section import Effort

_EVENTS = 300_000
_LATENCY = 0.02
_VISITORS = 20_000
_WARM_UP = 5_000

_WINDOW_EVENTS = 40_000
_WINDOW_RATE = 20

_LEAST_RATE = 50_000
_MOST_CPU = 12.0
_MOST_SHARE = 0.25
_SENDERS = 4


def envelopes(count: int) -> list[bytes]:
    """Return `count` encoded events of many visitors; the product of event number n is n."""
    codec = Codec()
    mark = sink.MARK.decode()
    return [
        codec.encode(View(session_external_id=f"{mark}{number % _VISITORS}", product_id=number))
        for number in range(count)
    ]


def run(effort: Effort) -> Section:
    """Deliver a full stream of every broker, once without and once with the request limit."""
    events = effort.count(_EVENTS)
    rows: list[tuple[Any, ...]] = []
    demands: list[Demand] = []
    floor = [
        _measured(BROKERS["redis"], events, lifted=True, function="floor") for _ in range(1 if effort.quick else 3)
    ]
    rows.append(_row(sorted(floor, key=_cpu)[len(floor) // 2], "none", "the floor, from Redis", events))
    for name, broker_of in BROKERS.items():
        for lifted in (True, False):
            count = events if lifted else min(events, 200_000)
            report(f"relay: {name}, {'no limit' if lifted else 'the limit'}")
            runs = [_measured(broker_of, count, lifted=lifted) for _ in range(1 if effort.quick else 3)]
            figures = sorted(runs, key=_cpu)[len(runs) // 2]
            rows.append(_row(figures, "none" if lifted else "50 requests/s", figures["broker"], count))
            if name != "redis":
                continue
            if lifted:
                demands += [
                    Demand(
                        what="events a second from Redis Streams, no limit",
                        figure=max(run["rate"] for run in runs),
                        bound=_LEAST_RATE,
                        at_least=True,
                    ),
                    Demand(what="CPU of an event, no limit", figure=figures["cpu"], bound=_MOST_CPU, unit="µs"),
                ]
            else:
                demands += [
                    Demand(what="cores used at the default limit", figure=figures["share"], bound=_MOST_SHARE),
                    Demand(
                        what="used share of the default limit",
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
                title=f"A full stream, delivered by one relay; the API answers after {_LATENCY * 1000:.0f} ms",
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
                f"Events of {_VISITORS:,} visitors, in order for each.\n"
                "The floor only reads, posts and acknowledges.",
            ),
            _windows(effort),
        ),
        demands=tuple(demands),
    )


def _cpu(run: dict[str, Any]) -> float:
    cpu: float = run["cpu"]
    return cpu


def _row(figures: dict[str, Any], limit: str, name: str, count: int) -> tuple[Any, ...]:
    return (
        name,
        limit,
        figures["rate"],
        figures["cpu"],
        figures["share"],
        figures["broker_cpu"],
        figures["per_request"],
        figures["lag"] * 1000,
        count,
    )


def _windows(effort: Effort) -> Table:
    """Measure how large `window` (the unsettled messages) must be if answers are slow; the rate is moderate."""
    rows: list[tuple[Any, ...]] = []
    count = effort.count(_WINDOW_EVENTS)
    for latency in (0.1, 0.3):
        for window in (2_000, 4_000, WINDOW):
            report(f"relay: a window of {window}, {latency} s")
            with BROKERS["redis"]() as broker, sink.running(latency=latency) as server:
                asyncio.run(publish(broker, envelopes(_WARM_UP + count)))
                figures = call(
                    "acceptance.fleet.relay:deliver",
                    url=broker.url,
                    port=server.port,
                    events=count,
                    rate=_WINDOW_RATE,
                    window=window,
                )
            full = _WINDOW_RATE * 500
            rows.append((latency, window, figures["rate"], figures["rate"] / full * 100, figures["per_request"]))
    return Table(
        title=f"How large the window has to be, at {_WINDOW_RATE} requests a second",
        columns=("API's latency, s", "window", "events/s", "of the limit, %", "events/request"),
        rows=tuple(rows),
        note="Redis Streams. At 20 requests a second, a latency of 0.3 s has as many requests in flight as 0.12 s at "
        "50.",
    )


def _measured(broker_of: Any, events: int, *, lifted: bool, function: str = "deliver") -> dict[str, Any]:
    with broker_of() as broker, sink.running(latency=_LATENCY) as server:
        asyncio.run(publish(broker, envelopes(_WARM_UP + events)))
        before = cpu_time(broker.pid)
        options: dict[str, Any] = {} if function == "floor" else {"events": events, "rate": 0 if lifted else 50}
        figures = call(f"acceptance.fleet.relay:{function}", url=broker.url, port=server.port, **options)
        counted = server.take()
        assert counted["events"] == _WARM_UP + events, counted
        return figures | {
            "broker": broker.name,
            "events": counted["events"],
            "broker_cpu": (cpu_time(broker.pid) - before) / counted["events"] * 1e6,
        }


async def deliver(url: str, port: int, events: int, *, rate: int, window: int = WINDOW) -> dict[str, Any]:
    """Run a relay, as the command does, until all messages are settled; return its cost and rate after the warm-up."""
    settings = RelaySettings(source=url, name="relay", window=window)
    client = AsyncTrackingClient(
        "k",
        "p",
        base_url=f"http://127.0.0.1:{port}/1.0/",
        rate_limit=RateLimit(requests=rate) if rate else None,
        retry=RetryPolicy(outlast=True),
        buffer=settings.buffer,
    )
    relay = Relay(source_from_url(url, name="relay"), client, window=window)
    running = asyncio.create_task(relay.run())
    while relay.stats().delivered < _WARM_UP:  # noqa: ASYNC110 - the relay has no event for this
        await asyncio.sleep(0.001)
    begun, requests = relay.stats().delivered, client.stats().requests
    lags: list[float] = []
    with sparing_collector(), CostMeter() as meter:
        while (stats := relay.stats()).delivered < _WARM_UP + events or stats.unsettled:
            asked = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - asked - 0.005)
    requests = client.stats().requests - requests
    relay.stop()
    assert await running
    count = _WARM_UP + events - begun
    return {
        "rate": count / meter.wall,
        "cpu": meter.cpu / count * 1e6,
        "share": meter.cpu / meter.wall,
        "lag": max(lags),
        "per_request": count / max(1, requests),
    }


async def floor(url: str, port: int) -> dict[str, Any]:
    """Read, post and acknowledge a stream without checks, counters or retries: the least work that a relay can do."""
    stream = parse_qs(urlsplit(url).query)["stream"][0]
    redis: Any = Redis.from_url(url.partition("?")[0], protocol=2)
    api = f"http://127.0.0.1:{port}/1.0/visitorEvents?apiKey=k&partnerId=p"
    await redis.xgroup_create(stream, "floor", id="0", mkstream=True)
    headers = {"Content-Type": "application/json"}
    done = begun = 0
    requests = 0
    limits = httpx.Limits(max_connections=_SENDERS)
    async with httpx.AsyncClient(limits=limits, timeout=10) as http, contextlib.AsyncExitStack() as measured:
        meter = CostMeter()

        async def pump(number: int) -> None:
            nonlocal done, begun, requests
            while answer := await redis.execute_command(
                "XREADGROUP", "GROUP", "floor", f"floor{number}", "COUNT", 500, "STREAMS", stream, ">"
            ):
                entries = next(iter(answer.values())) if hasattr(answer, "values") else answer[0][1]
                bodies = [fields[b"envelope"] if isinstance(fields, dict) else fields[1] for _, fields in entries]
                response = await http.post(api, content=b"[%b]" % b",".join(bodies), headers=headers)
                response.raise_for_status()
                await redis.xack(stream, "floor", *(id_ for id_, _ in entries))
                done += len(entries)
                requests += 1
                if not begun and done >= _WARM_UP:
                    begun, requests = done, 0
                    measured.enter_context(meter)

        await asyncio.gather(*map(pump, range(_SENDERS)))
    await redis.aclose()
    count = done - begun
    return {
        "rate": count / meter.wall,
        "cpu": meter.cpu / count * 1e6,
        "share": meter.cpu / meter.wall,
        "lag": 0.0,
        "per_request": count / max(1, requests),
    }
