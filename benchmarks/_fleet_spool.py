"""What a spool costs and holds: durable events a second, the time of a call, a backlog of millions, and its end."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _child import call
from _meters import resident
from _process import running
from _section import Demand, Section, Table
from _sink import MARK, Sink, main, taken

from retailrocket_async import AsyncTrackingClient, Event, SqliteSpool, View

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _section import Effort

CALLERS = 256
PACE = 5000
FULL = 25_000
"""Events a second that the limit lets out: 50 requests of 500."""

_TICK = 0.001
_WARM_UP = 1.0


def events(count: int) -> Iterator[Event]:
    """Yield events of as many visitors."""
    for number in range(1, count + 1):
        yield View(session_external_id=f"{MARK.decode()}{number % 1000}", product_id=number)


def client_of(port: int, directory: str) -> AsyncTrackingClient:
    """Return a client with a spool, at the default limit."""
    return AsyncTrackingClient("key", "shop", base_url=f"http://127.0.0.1:{port}/", spool=SqliteSpool(directory))


# --- each in a process of its own -----------------------------------------------------------------------------------


async def callers(port: int, directory: str, count: int) -> dict[str, Any]:
    """Have 256 callers track as fast as they can, each event only once the one before is on disk."""
    async with client_of(port, directory) as client:
        given = list(events(CALLERS))

        async def caller(event: Event) -> None:
            for _ in range(count // CALLERS):
                await client.track(event)

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*map(caller, given))
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        delivered = client.stats().delivered
        await client.aclose(0)
    tracked = count // CALLERS * CALLERS
    return {"rate": tracked / took, "cpu": used / tracked * 1e6, "delivered": delivered}


async def paced(port: int, directory: str, seconds: float) -> dict[str, Any]:
    """Track 5,000 events a second, one call each, and measure each call, and how late the loop is."""
    times: list[float] = []
    lags: list[float] = []
    async with client_of(port, directory) as client:
        loop = asyncio.get_running_loop()

        async def one(event: Event) -> None:
            began = loop.time()
            await client.track(event)
            if began >= warm:
                times.append(loop.time() - began)

        async def lag() -> None:
            await asyncio.sleep(_WARM_UP)
            while True:
                due = loop.time() + _TICK
                await asyncio.sleep(_TICK)
                lags.append(loop.time() - due)

        cpu, began, tasks = time.process_time(), loop.time(), set[asyncio.Task[None]]()
        # The first request loads what TLS needs, which is not what is measured.
        warm = began + _WARM_UP
        metering = asyncio.create_task(lag())
        count = int(PACE * (seconds + _WARM_UP))
        for number, event in enumerate(events(count)):
            if (wait := began + number / PACE - loop.time()) > 0.0005:
                await asyncio.sleep(wait)
            tasks.add(task := asyncio.create_task(one(event)))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        used = time.process_time() - cpu
        metering.cancel()
        await client.flush(60)
        assert client.stats().delivered == count
    return {
        "p50": _at(times, 0.5),
        "p99": _at(times, 0.99),
        "lag": _at(lags, 0.99),
        "worst": max(lags),
        "cpu": used / count * 1e6,
    }


async def backlog(port: int, directory: str, count: int) -> dict[str, Any]:
    """Fill a spool while another process seems to send, so that nothing leaves."""
    held = resident()
    async with client_of(port, directory) as client:
        began = time.perf_counter()
        for group in _grouped(events(count), 10_000):
            await client.track_many(group)
            held = max(held, resident())
        took = time.perf_counter() - began
        await client.aclose(0)
    return {"rate": count / took, "memory": held}


async def drained(port: int, directory: str, count: int) -> dict[str, Any]:
    """Deliver what is in a spool."""
    held = resident()
    lags: list[float] = []
    async with client_of(port, directory) as client:
        began = time.perf_counter()
        cpu = time.process_time()
        due = asyncio.get_running_loop().time()
        while (stats := client.stats()).spool is None or stats.spool.events or not stats.requests:
            due = asyncio.get_running_loop().time() + 0.005
            await asyncio.sleep(0.005)
            lags.append(asyncio.get_running_loop().time() - due)
            held = max(held, resident())
        took, used = time.perf_counter() - began, time.process_time() - cpu
        await client.aclose()
    return {
        "rate": count / took,
        "memory": held,
        "cpu": used / count * 1e6,
        "share": used / took,
        "lag": _at(lags, 0.99),
    }


def _grouped(given: Iterator[Event], size: int) -> Iterator[list[Event]]:
    while group := list(itertools.islice(given, size)):
        yield group


def _at(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


# --- the section ----------------------------------------------------------------------------------------------------


def run(effort: Effort) -> Section:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as root, running(main, Sink()) as (port, pipe):
        accepting, both = [], []
        for number in range(1 if effort.quick else 3):
            _progress(f"256 callers, round {number + 1}")
            directory = f"{root}/callers{number}"
            with _led(directory):
                accepting.append(
                    call("_fleet_spool:callers", port=port, directory=directory, count=effort.count(512_000))
                )
            both.append(
                call("_fleet_spool:callers", port=port, directory=f"{root}/both{number}", count=effort.count(256_000))
            )
        pace = []
        for number in range(1 if effort.quick else 3):
            _progress(f"{PACE:,} events a second, round {number + 1}")
            pace.append(
                call("_fleet_spool:paced", port=port, directory=f"{root}/paced{number}", seconds=effort.count(10))
            )
        count = effort.count(2_000_000)
        _progress(f"a backlog of {count:,}")
        directory = f"{root}/backlog"
        with _led(directory):
            filled = call("_fleet_spool:backlog", port=port, directory=directory, count=count)
        size = _size(directory)
        taken(pipe)
        _progress("draining it")
        drain = call("_fleet_spool:drained", port=port, directory=directory, count=count)
        arrived = taken(pipe)["events"]
        left = _size(directory)
    return _section(accepting, both, pace, filled, drain, count, size, left, arrived)


def _section(  # noqa: PLR0913, PLR0917 - all that was measured
    accepting: list[dict[str, Any]],
    both: list[dict[str, Any]],
    pace: list[dict[str, Any]],
    filled: dict[str, Any],
    drain: dict[str, Any],
    count: int,
    size: int,
    left: int,
    arrived: int,
) -> Section:
    rate = statistics.median(each["rate"] for each in accepting)
    p99 = statistics.median(each["p99"] for each in pace) * 1000
    lag = statistics.median(each["lag"] for each in pace) * 1000
    memory = max(filled["memory"], drain["memory"]) / 1e6
    return Section(
        name="spool",
        title="A spool on one host",
        tables=(
            Table(
                title="256 concurrent callers, each event on disk before the next",
                columns=("who sends", "events a second", "CPU µs an event"),
                rows=(
                    ("another process", rate, statistics.median(each["cpu"] for each in accepting)),
                    (
                        "this one as well",
                        statistics.median(each["rate"] for each in both),
                        statistics.median(each["cpu"] for each in both),
                    ),
                ),
                note="Where it sends as well, the cost of delivering is in it.",
            ),
            Table(
                title=f"{PACE:,} calls of track a second, delivering as well, from the second second on",
                columns=("track p50 ms", "track p99 ms", "loop lag p99 ms", "worst lag ms", "CPU µs an event"),
                rows=tuple(
                    (each["p50"] * 1e3, each["p99"] * 1e3, each["lag"] * 1e3, each["worst"] * 1e3, each["cpu"])
                    for each in pace
                ),
            ),
            Table(
                title=f"A backlog of {count:,} events",
                columns=("what", "events a second", "memory MB", "file MB afterwards"),
                rows=(
                    ("filled", filled["rate"], filled["memory"] / 1e6, size / 1e6),
                    ("drained at 50 requests a second", drain["rate"], drain["memory"] / 1e6, left / 1e6),
                ),
                note=f"Draining takes {drain['share']:.2f} of a core; loop lag p99 {drain['lag'] * 1e3:.1f} ms.",
            ),
        ),
        demands=(
            Demand(what="durable events from 256 callers", figure=rate, bound=100_000, unit="a second", at_least=True),
            Demand(what=f"track at {PACE:,} a second, p99", figure=p99, bound=10, unit="ms"),
            Demand(what=f"loop lag at {PACE:,} a second, p99", figure=lag, bound=5, unit="ms"),
            Demand(what="memory with the backlog", figure=memory, bound=100, unit="MB"),
            Demand(
                what="draining, part of what the limit allows",
                figure=drain["rate"] / FULL,
                bound=0.95,
                at_least=True,
            ),
            Demand(what="events of the backlog that arrived", figure=arrived, bound=count, at_least=True),
            Demand(what="file after draining, part of before", figure=left / size, bound=0.1),
        ),
    )


class _led:  # noqa: N801 - used as a function
    """Hold a spool's drain lock, as a process that sends would, while the block runs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._file = SqliteSpool(self._directory).file()
        self._file.open()
        assert self._file.lead()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _size(directory: str) -> int:
    return sum(path.stat().st_size for path in Path(directory).iterdir())


def _progress(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)
