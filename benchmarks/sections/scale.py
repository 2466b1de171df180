"""Measures how the cost of an event changes with the length of the run, the batch size and the number of callers.

The cost is the CPU time of the client's process per event. The request limit is too high to matter, so that only the
processor bounds the rate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import BATCH
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import CostMeter
from benchmarks.support.section import Cell, Demand, Section, Table
from benchmarks.support.spread import median_of_rounds
from benchmarks.traffic import client, view, warm
from retailrocket_async import Batching

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from benchmarks.support.section import Effort

_RUNS = (1_000, 10_000, 100_000, 1_000_000)
_BATCHES = {1: 1_000, 10: 4_000, 50: 15_000, 100: 30_000, BATCH: 50_000, 2_000: 50_000}
"""The number of events to send at each batch size: enough to be measured, and few if a batch has few events."""

_WAITED_FOR = 10_000
"""Number of receipts that all callers together await at the same time."""

_SHARED = (1, 100, 1_000, 10_000)
"""Numbers of callers among which these receipts are divided."""

_ALONE = (BATCH, 1_000, 10_000)
"""Numbers of callers that await one receipt each; the smallest number fills one batch."""

_AWAITED = 60_000
_CLIENTS = 10
_ALLOWED = 1.3
"""Greatest allowed cost of an event, as a multiple of the smallest measured cost."""

Figures = dict[str, float]
Job = tuple[str, dict[str, Any]]


# --- measurements, each in its own process ----------------------------------------------------------------------------


async def waiters(port: int, events: int, callers: int, group: int) -> Figures:
    """Let each caller track `group` events, await their receipts in order, and repeat that."""
    async with client(port, lifted=True) as ours:
        await warm(ours)

        go = asyncio.Event()

        async def caller() -> None:
            await go.wait()
            for _ in range(events // callers // group):
                receipts = [await view(ours, number) for number in range(group)]
                for receipt in receipts:
                    await receipt

        before = ours.stats()
        tasks = await _started([caller() for _ in range(callers)])
        with CostMeter() as meter:
            go.set()
            await asyncio.gather(*tasks)
        after = ours.stats()
    tracked = after.tracked - before.tracked
    assert after.delivered == after.tracked, after
    return {"cpu": meter.cpu / tracked * 1e6, "batch": tracked / (after.requests - before.requests)}


async def _started(callers: list[Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
    """Return the callers as started tasks, so that creating ten thousand tasks is not measured."""
    tasks = [asyncio.create_task(each) for each in callers]
    await asyncio.sleep(0)
    return tasks


async def asyncio_alone(port: int, events: int, callers: int, group: int) -> Figures:
    """Do the same as `waiters` with plain futures, which are set 500 at a time: this is the cost of asyncio alone."""
    del port
    loop = asyncio.get_running_loop()
    pending: list[asyncio.Future[None]] = []

    def settle() -> None:
        batch = pending[:BATCH]
        del pending[:BATCH]
        for future in batch:
            future.set_result(None)

    def new_future() -> asyncio.Future[None]:
        future: asyncio.Future[None] = loop.create_future()
        pending.append(future)
        if len(pending) % BATCH == 0:
            loop.call_soon(settle)
        return future

    go = asyncio.Event()

    async def caller() -> None:
        await go.wait()
        for _ in range(events // callers // group):
            futures = [new_future() for _ in range(group)]
            for future in futures:
                await future

    tasks = await _started([caller() for _ in range(callers)])
    with CostMeter() as meter:
        go.set()
        await asyncio.gather(*tasks)
    return {"cpu": meter.cpu / (events // callers // group * callers * group) * 1e6}


async def many_clients(port: int, events: int, clients: int) -> Figures:
    """Divide events among several clients of one process, each fed by a task of its own."""
    several = [client(port, lifted=True) for _ in range(clients)]
    for each in several:
        await warm(each)

    async def feed(number: int) -> None:
        for product in range(events // clients):
            await view(several[number], product)
        await several[number].flush()

    with CostMeter() as meter:
        await asyncio.gather(*map(feed, range(clients)))
    for each in several:
        await each.aclose()
    return {"cpu": meter.cpu / events * 1e6}


# --- the section ------------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> Section:
    """Measure everything in turns, in half of the rounds, because a million events take long."""
    jobs = _jobs(effort)
    found: dict[str, list[Figures]] = {name: [] for name in jobs}
    with sink.running() as server:
        for number in range((effort.rounds + 1) // 2):
            for name, (target, arguments) in jobs.items():
                if number and target == "benchmarks.sections.scale:asyncio_alone":
                    # This row is only shown for comparison, so one round is enough.
                    continue
                found[name].append(call(target, port=server.port, **arguments))
    costs = {name: _median(rounds, "cpu") for name, rounds in found.items()}
    batches = {name: _median(rounds, "batch") for name, rounds in found.items() if "batch" in rounds[0]}
    runs = [[effort.count(events), costs[f"run {events}"]] for events in _RUNS]
    caps = [[cap, costs[f"cap {cap}"], costs[f"floor {cap}"]] for cap in _BATCHES]
    shared = [[callers, costs[_waiting(callers, shared=True)]] for callers in _SHARED]
    alone = [[callers, costs[_waiting(callers, shared=False)]] for callers in _ALONE]
    return Section(
        name="scale",
        title="How the cost grows",
        tables=(
            _of_runs(runs, costs["clients"], effort.count(100_000)),
            _of_batches(caps),
            _of_waiters(costs, batches, _awaited(effort)),
        ),
        demands=(
            _flatness("cost from 10 thousand to a million events", runs[1:]),
            _flatness("cost from 1 to 10,000 callers that share 10,000 awaited receipts", shared),
            _flatness("cost from 500 to 10,000 callers that await one receipt each", alone),
        ),
        series={"scale": {"batch": caps, "events": runs, "waiters": shared, "waiters_alone": alone}},
    )


def _jobs(effort: Effort) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for events in _RUNS:
        jobs[f"run {events}"] = "benchmarks.contestants:ours_by_track", {"events": effort.count(events)}
    jobs["clients"] = "benchmarks.sections.scale:many_clients", {"events": effort.count(100_000), "clients": _CLIENTS}
    for cap, events in _BATCHES.items():
        jobs[f"cap {cap}"] = "benchmarks.contestants:ours_by_track", {"events": effort.count(events), "cap": cap}
        jobs[f"floor {cap}"] = "benchmarks.contestants:floor", {"events": effort.count(events), "cap": cap}
    for callers, shared in _caller_counts():
        group = _WAITED_FOR // callers if shared else 1
        arguments = {"events": _awaited(effort), "callers": callers, "group": group}
        name = _waiting(callers, shared=shared)
        jobs[name] = "benchmarks.sections.scale:waiters", arguments
        jobs[f"asyncio, {name}"] = "benchmarks.sections.scale:asyncio_alone", arguments
    return jobs


def _awaited(effort: Effort) -> int:
    """Return the number of events of each row: at least one for each of ten thousand callers."""
    return max(_WAITED_FOR, effort.count(_AWAITED))


def _caller_counts() -> list[tuple[int, bool]]:
    """Return each number of callers, and whether they share 10,000 receipts or await one each."""
    return [*((callers, True) for callers in _SHARED), *((callers, False) for callers in _ALONE)]


def _waiting(callers: int, *, shared: bool) -> str:
    # Ten thousand callers that share ten thousand receipts await one receipt each, so this measurement is in both rows.
    return f"{callers} callers, {_WAITED_FOR // callers if shared else 1} each"


def _median(rounds: list[Figures], name: str) -> float:
    found = median_of_rounds(each[name] for each in rounds)
    assert found is not None
    return found


def _flatness(what: str, points: list[list[float]]) -> Demand:
    costs = [cost for _, cost in points]
    return Demand(what=f"{what}: largest / smallest", figure=max(costs) / min(costs), bound=_ALLOWED)


def _of_runs(runs: list[list[float]], of_clients: float, events: int) -> Table:
    smallest = min(cost for _, cost in runs[1:])
    rows: list[tuple[Cell, ...]] = [
        (f"{int(count):,} events", 1, cost, round(cost / smallest, 2)) for count, cost in runs
    ]
    rows.append((f"{events:,} events", _CLIENTS, of_clients, round(of_clients / smallest, 2)))
    return Table(
        title="CPU time of an event by the length of the run",
        columns=("run", "clients", "CPU, µs/event", "of the smallest"),
        rows=tuple(rows),
        note=(
            "`await client.track(View(...))` on an open connection, medians of the rounds. The last column compares "
            "with the smallest cost from 10 thousand events on. Ten clients share the events, in one process and one "
            "loop."
        ),
    )


def _of_batches(caps: list[list[float]]) -> Table:
    return Table(
        title="CPU time of an event by the size of the batch",
        columns=("events in a batch", "ours, µs/event", "floor, µs/event", "ours / floor", "above the floor, µs/event"),
        rows=tuple((int(cap), ours, floor, round(ours / floor, 2), ours - floor) for cap, ours, floor in caps),
        note=(
            "The floor posts the same batches by httpx, one after the other, from ready dicts: it makes, checks and "
            f"keeps no events. Our client has up to {Batching().max_in_flight} requests in flight."
        ),
    )


def _of_waiters(costs: dict[str, float], batches: dict[str, float], events: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for callers, shared in _caller_counts():
        name = _waiting(callers, shared=shared)
        group = _WAITED_FOR // callers if shared else 1
        ours, alone = costs[name], costs[f"asyncio, {name}"]
        if shared or group != _WAITED_FOR // callers:
            rows.append((callers, group, callers * group, batches[name], ours, alone, ours - alone))
    return Table(
        title="CPU time of an event whose receipt is awaited, by how many callers do so",
        columns=(
            "callers",
            "receipts of each",
            "awaited together",
            "events in a batch",
            "CPU, µs/event",
            "asyncio alone, µs/event",
            "difference",
        ),
        rows=tuple(rows),
        note=(
            f"{events:,} events in each row. A caller tracks the events of its receipts, awaits the receipts one "
            "after the other, and repeats that. In the first rows the same number of receipts is awaited together, "
            "so that batches are equal, but the number of waits differs. If 500 receipts are settled together, one "
            "caller with all of them wakes once; 500 callers with one each wake 500 times, which costs a task switch "
            "for every event. That is asyncio's own cost, so the column beside it shows the same with bare futures. "
            "In the last rows every caller awaits one receipt, and the smallest number of callers fills one batch: "
            "each event costs a task switch there, and in the last of the first rows."
        ),
    )
