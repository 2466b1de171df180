"""What an event costs, by how many there are, by how many go in a batch, and by how many callers wait.

The limit is lifted, so that the processor is all that there is to measure: CPU time of this process, per event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import _child
import _process
import _sink
from _alone import run
from _contestants import BATCH
from _section import Cell, Demand, Section, Table
from _spread import mid
from _traffic import client, view, warm

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from _section import Effort

_RUNS = (1_000, 10_000, 100_000, 1_000_000)
_CAPS = {1: 1_000, 10: 4_000, 50: 15_000, 100: 30_000, BATCH: 50_000, 2_000: 50_000}
"""Events that are sent at each cap: enough of them for the clock, and few where each is a request."""

_WAITED_FOR = 10_000
"""Receipts that are awaited at the same time, however many callers share them."""

_SHARED = (1, 100, 1_000, 10_000)
"""Callers that share them."""

_ALONE = (BATCH, 1_000, 10_000)
"""Callers that await one receipt each: from as many on as fill a batch."""

_AWAITED = 60_000
_CLIENTS = 10
_ALLOWED = 1.3
"""What the largest cost may be of the smallest."""

Figures = dict[str, float]
Job = tuple[str, dict[str, Any]]


# --- what is measured, each in a process of its own -------------------------------------------------------------------


async def waiters(port: int, events: int, callers: int, group: int) -> Figures:
    """Have so many callers each track a group of events, await their receipts in order, and go on."""
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
        tasks = await _ready([caller() for _ in range(callers)])
        with _child.Meter() as meter:
            go.set()
            await asyncio.gather(*tasks)
        after = ours.stats()
    tracked = after.tracked - before.tracked
    assert after.delivered == after.tracked, after
    return {"cpu": meter.cpu / tracked * 1e6, "batch": tracked / (after.requests - before.requests)}


async def _ready(callers: list[Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
    """Return the callers as tasks that have begun: to make ten thousand tasks is no part of what an event costs."""
    tasks = [asyncio.create_task(each) for each in callers]
    await asyncio.sleep(0)
    return tasks


async def asyncio_alone(port: int, events: int, callers: int, group: int) -> Figures:
    """Do what `waiters` does with bare futures, of which 500 at a time are done: what asyncio takes for it."""
    del port
    loop = asyncio.get_running_loop()
    pending: list[asyncio.Future[None]] = []

    def settle() -> None:
        batch = pending[:BATCH]
        del pending[:BATCH]
        for future in batch:
            future.set_result(None)

    def made() -> asyncio.Future[None]:
        future: asyncio.Future[None] = loop.create_future()
        pending.append(future)
        if len(pending) % BATCH == 0:
            loop.call_soon(settle)
        return future

    go = asyncio.Event()

    async def caller() -> None:
        await go.wait()
        for _ in range(events // callers // group):
            futures = [made() for _ in range(group)]
            for future in futures:
                await future

    tasks = await _ready([caller() for _ in range(callers)])
    with _child.Meter() as meter:
        go.set()
        await asyncio.gather(*tasks)
    return {"cpu": meter.cpu / (events // callers // group * callers * group) * 1e6}


async def many_clients(port: int, events: int, clients: int) -> Figures:
    """Share so many events among clients of one process, each fed by a task of its own."""
    several = [client(port, lifted=True) for _ in range(clients)]
    for each in several:
        await warm(each)

    async def feed(number: int) -> None:
        for product in range(events // clients):
            await view(several[number], product)
        await several[number].flush()

    with _child.Meter() as meter:
        await asyncio.gather(*map(feed, range(clients)))
    for each in several:
        await each.aclose()
    return {"cpu": meter.cpu / events * 1e6}


# --- the section ------------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> Section:
    """Measure everything, one after the other, in about half of the rounds: a million events take their time."""
    jobs = _jobs(effort)
    found: dict[str, list[Figures]] = {name: [] for name in jobs}
    with _process.running(_sink.main, _sink.Sink()) as (port, _):
        for number in range((effort.rounds + 1) // 2):
            for name, (target, arguments) in jobs.items():
                if number and target == "_scale:asyncio_alone":
                    # It is shown for comparison, and its process takes longer to start than to be measured.
                    continue
                found[name].append(_child.call(target, port=port, **arguments))
    costs = {name: _median(rounds, "cpu") for name, rounds in found.items()}
    batches = {name: _median(rounds, "batch") for name, rounds in found.items() if "batch" in rounds[0]}
    runs = [[effort.count(events), costs[f"run {events}"]] for events in _RUNS]
    caps = [[cap, costs[f"cap {cap}"], costs[f"floor {cap}"]] for cap in _CAPS]
    shared = [[callers, costs[_waiting(callers, shared=True)]] for callers in _SHARED]
    alone = [[callers, costs[_waiting(callers, shared=False)]] for callers in _ALONE]
    return Section(
        name="scale",
        title="How the cost grows",
        tables=(
            _of_runs(runs, costs["clients"], effort.count(100_000)),
            _of_caps(caps),
            _of_waiters(costs, batches, _awaited(effort)),
        ),
        demands=(
            _flat("cost from 10 thousand to a million events", runs[1:]),
            _flat("cost from 1 to 10,000 callers that share 10,000 awaited receipts", shared),
            _flat("cost from 500 to 10,000 callers that await one receipt each", alone),
        ),
        series={"scale": {"batch": caps, "events": runs, "waiters": shared, "waiters_alone": alone}},
    )


def _jobs(effort: Effort) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for events in _RUNS:
        jobs[f"run {events}"] = "_contestants:ours_by_track", {"events": effort.count(events)}
    jobs["clients"] = "_scale:many_clients", {"events": effort.count(100_000), "clients": _CLIENTS}
    for cap, events in _CAPS.items():
        jobs[f"cap {cap}"] = "_contestants:ours_by_track", {"events": effort.count(events), "cap": cap}
        jobs[f"floor {cap}"] = "_contestants:floor", {"events": effort.count(events), "cap": cap}
    for callers, shared in _kinds():
        group = _WAITED_FOR // callers if shared else 1
        arguments = {"events": _awaited(effort), "callers": callers, "group": group}
        name = _waiting(callers, shared=shared)
        jobs[name] = "_scale:waiters", arguments
        jobs[f"asyncio, {name}"] = "_scale:asyncio_alone", arguments
    return jobs


def _awaited(effort: Effort) -> int:
    """Return how many events are awaited in each row: one receipt for each of ten thousand callers at least."""
    return max(_WAITED_FOR, effort.count(_AWAITED))


def _kinds() -> list[tuple[int, bool]]:
    """Return how many callers wait, and whether they share 10,000 receipts or await one each."""
    return [*((callers, True) for callers in _SHARED), *((callers, False) for callers in _ALONE)]


def _waiting(callers: int, *, shared: bool) -> str:
    # Ten thousand that share ten thousand have one each: measured once.
    return f"{callers} callers, {_WAITED_FOR // callers if shared else 1} each"


def _median(rounds: list[Figures], name: str) -> float:
    found = mid(each[name] for each in rounds)
    assert found is not None
    return found


def _flat(what: str, points: list[list[float]]) -> Demand:
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
            "`await client.track(View(...))`, the connection warm, medians of the rounds; of the smallest from 10 "
            "thousand events on. Ten clients share their events, in one process and one event loop."
        ),
    )


def _of_caps(caps: list[list[float]]) -> Table:
    return Table(
        title="CPU time of an event by the size of the batch",
        columns=("events in a batch", "ours, µs/event", "floor, µs/event", "ours / floor", "above the floor, µs/event"),
        rows=tuple((int(cap), ours, floor, round(ours / floor, 2), ours - floor) for cap, ours, floor in caps),
        note=(
            "The floor posts the same batches by httpx, one after the other, from dicts that are ready: it makes, "
            "checks and keeps no events. Up to eight of our requests are on their way at once."
        ),
    )


def _of_waiters(costs: dict[str, float], batches: dict[str, float], events: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for callers, shared in _kinds():
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
            "awaited at once",
            "events in a batch",
            "CPU, µs/event",
            "asyncio alone, µs/event",
            "difference",
        ),
        rows=tuple(rows),
        note=(
            f"{events:,} events in each row. A caller tracks its receipts' events, awaits the receipts one after the "
            "other, and goes on. The first rows have equally many receipts awaited at once, so that batches are equal, "
            "but not equally many waits: of 500 receipts that come together a caller with all of them is woken once, "
            "500 callers with one each are woken 500 times, which is a task switch for every event and asyncio's own "
            "price. So the same is done with bare futures beside it, and the last rows have callers with one receipt "
            "each, from as many on as fill a batch: a task switch for every event in all of them, and in the last of "
            "the first rows."
        ),
    )


if __name__ == "__main__":
    run(measure)
