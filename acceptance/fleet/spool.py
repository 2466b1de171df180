"""Measures a spool (a queue on disk): events a second, the duration of a call, and filling and emptying it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import resident
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table
from benchmarks.support.sink import MARK
from benchmarks.support.spread import percentile
from retailrocket_async import AsyncTrackingClient, Event, SqliteSpool, View

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.section import Effort

CALLERS = 256
PACE = 5000
FULL_STREAM = 25_000
"""Events a second that the request limit allows: 50 requests of 500 events."""

_TICK = 0.001
_WARM_UP = 1.0


def events(count: int) -> Iterator[Event]:
    """Yield `count` events of a thousand visitors."""
    for number in range(1, count + 1):
        yield View(session_external_id=f"{MARK.decode()}{number % 1000}", product_id=number)


def client_of(port: int, directory: str) -> AsyncTrackingClient:
    """Return a client with a spool and the default limit."""
    return AsyncTrackingClient("key", "shop", base_url=f"http://127.0.0.1:{port}/", spool=SqliteSpool(directory))


# --- functions that run in their own process ------------------------------------------------------------------------


async def callers(port: int, directory: str, count: int) -> dict[str, Any]:
    """Let 256 callers track as fast as they can; each waits until its event is on disk before it tracks another one."""
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
    """Track 5,000 events a second, each in a call of its own; measure the time of each call, and the event-loop lag."""
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
        # The first second is not measured, because the first request takes longer: it loads the TLS certificates.
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
        "p50": percentile(times, 50),
        "p99": percentile(times, 99),
        "lag": percentile(lags, 99),
        "worst": max(lags),
        "cpu": used / count * 1e6,
    }


async def backlog(port: int, directory: str, count: int) -> dict[str, Any]:
    """Fill a spool; another process has the drain lock, without which this process must not send the events."""
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
    """Deliver all events of a spool."""
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
        "lag": percentile(lags, 99),
    }


def _grouped(given: Iterator[Event], size: int) -> Iterator[list[Event]]:
    while group := list(itertools.islice(given, size)):
        yield group


# --- the section ----------------------------------------------------------------------------------------------------


def run(effort: Effort) -> Section:
    """Measure the rate of many callers, the time of paced calls, and a backlog of many events."""
    with tempfile.TemporaryDirectory() as root, sink.running() as server:
        port = server.port
        accepting, both = [], []
        for number in range(1 if effort.quick else 3):
            report(f"256 callers, round {number + 1}")
            directory = f"{root}/callers{number}"
            with _drain_lock(directory):
                accepting.append(
                    call("acceptance.fleet.spool:callers", port=port, directory=directory, count=effort.count(512_000))
                )
            both.append(
                call(
                    "acceptance.fleet.spool:callers",
                    port=port,
                    directory=f"{root}/both{number}",
                    count=effort.count(256_000),
                )
            )
        pace = []
        for number in range(1 if effort.quick else 3):
            report(f"{PACE:,} events a second, round {number + 1}")
            pace.append(
                call(
                    "acceptance.fleet.spool:paced",
                    port=port,
                    directory=f"{root}/paced{number}",
                    seconds=effort.count(10),
                )
            )
        count = effort.count(2_000_000)
        report(f"a backlog of {count:,}")
        directory = f"{root}/backlog"
        with _drain_lock(directory):
            filled = call("acceptance.fleet.spool:backlog", port=port, directory=directory, count=count)
        size = _size(directory)
        server.take()
        report("delivering it")
        drain = call("acceptance.fleet.spool:drained", port=port, directory=directory, count=count)
        arrived = server.take()["events"]
        left = _size(directory)
    return _section(accepting, both, pace, filled, drain, count, size, left, arrived)


def _section(  # noqa: PLR0913, PLR0917 - all figures of the section
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
                columns=("sending process", "events a second", "CPU µs an event"),
                rows=(
                    ("another process", rate, statistics.median(each["cpu"] for each in accepting)),
                    (
                        "this one, too",
                        statistics.median(each["rate"] for each in both),
                        statistics.median(each["cpu"] for each in both),
                    ),
                ),
                note="If this process sends, too, its CPU time includes the delivery.",
            ),
            Table(
                title=f"{PACE:,} calls of track a second in a process that also delivers, without the first second",
                columns=("track p50 ms", "track p99 ms", "loop lag p99 ms", "worst lag ms", "CPU µs an event"),
                rows=tuple(
                    (each["p50"] * 1e3, each["p99"] * 1e3, each["lag"] * 1e3, each["worst"] * 1e3, each["cpu"])
                    for each in pace
                ),
            ),
            Table(
                title=f"A backlog of {count:,} events",
                columns=("step", "events a second", "memory MB", "file MB afterwards"),
                rows=(
                    ("filled", filled["rate"], filled["memory"] / 1e6, size / 1e6),
                    ("delivered at 50 requests a second", drain["rate"], drain["memory"] / 1e6, left / 1e6),
                ),
                note=f"Delivery takes {drain['share']:.2f} of a core; loop lag p99 {drain['lag'] * 1e3:.1f} ms.",
            ),
        ),
        demands=(
            Demand(what="durable events from 256 callers", figure=rate, bound=100_000, unit="a second", at_least=True),
            Demand(what=f"track at {PACE:,} a second, p99", figure=p99, bound=10, unit="ms"),
            Demand(what=f"loop lag at {PACE:,} a second, p99", figure=lag, bound=5, unit="ms"),
            Demand(what="memory with the backlog", figure=memory, bound=100, unit="MB"),
            Demand(
                what="delivery, share of the limit",
                figure=drain["rate"] / FULL_STREAM,
                bound=0.95,
                at_least=True,
            ),
            Demand(what="events of the backlog that arrived", figure=arrived, bound=count, at_least=True),
            Demand(what="file after delivery, share of its size before", figure=left / size, bound=0.1),
        ),
    )


@contextlib.contextmanager
def _drain_lock(directory: str) -> Iterator[None]:
    """Hold the drain lock of a spool while the block runs, as a process that sends the spool's events does."""
    file = SqliteSpool(directory).file()
    file.open()
    over = threading.Event()

    def beat() -> None:
        # The lease is renewed, because otherwise the process that fills the spool would take the lease over and send
        # the events.
        while not over.wait(1.0):
            file.lease.renew()

    with contextlib.closing(file):
        assert file.lease.acquire()
        beating = threading.Thread(target=beat)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()


def _size(directory: str) -> int:
    return sum(path.stat().st_size for path in Path(directory).iterdir())
