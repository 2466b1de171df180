"""Checks that no accepted event is lost or out of order if processes that share a spool are killed repeatedly."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from acceptance.support import recording_server
from acceptance.support.order_check import STREAM
from benchmarks.support import server_process
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table
from retailrocket_async import AsyncTrackingClient, Batching, SqliteSpool, View

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from benchmarks.support.section import Effort

WRITERS = 4
PACE = 2000
"""Events a second of each writer."""

GROUP = 40
BATCHING = Batching()
_LATENCY = 0.3
"""Seconds that the server takes for a batch."""


@attrs.frozen(kw_only=True)
class Found:
    """The figures of a run.

    Attributes:
        kills: the number of killed processes.
        accepted: the number of events whose `track_many` returned.
        delivered: the number of different events that the server recorded.
        lost: the number of accepted events that the server did not record.
        repeated: the number of times that the server recorded an event again.
        unconfirmed: the number of recorded events whose process was killed before `track_many` returned.
        seconds: seconds from the last kill until the spool was empty.
        overlaps: the number of requests that overlapped another request with events of the same visitor.
        disordered: the number of events that were first recorded after a later event of their visitor and process.
        takeover: the longest time without a request, in seconds.
        whole: whether SQLite finds the file undamaged.
    """

    kills: int
    accepted: int
    delivered: int
    lost: int
    repeated: int
    unconfirmed: int
    seconds: float
    overlaps: int
    disordered: int
    takeover: float
    whole: bool

    @property
    def allowed(self) -> int:
        """How often events may be recorded again, by the delivery contract: the events in flight at each kill."""
        return self.kills * BATCHING.max_events * BATCHING.max_in_flight


def write(number: int, url: str, directory: str, notes_path: str, pace: int) -> None:
    """Track events until killed, and write the numbers of accepted events to a file; if `pace` is 0, only deliver."""

    async def track() -> None:
        client = AsyncTrackingClient("key", "shop", base_url=url, spool=SqliteSpool(directory), batching=BATCHING)
        async with client:
            # The writes are not flushed to disk, because data in the system's cache survives if this process is killed.
            notes = os.open(notes_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            loop = asyncio.get_running_loop()
            due, counter = loop.time(), number * STREAM
            while True:
                due += GROUP / (pace or GROUP)
                await asyncio.sleep(max(0.0, due - loop.time()))
                if pace:
                    first = counter + 1
                    counter += GROUP
                    numbers = range(first, counter + 1)
                    await client.track_many(
                        View(session_external_id=f"visitor{each % 97}", product_id=each) for each in numbers
                    )
                    os.write(notes, struct.pack("=qq", first, counter))

    asyncio.run(track())


def torture(seconds: float, *, seed: int = 1, every: float = 0.5, pace: int = PACE) -> Found:
    """Let processes share one spool, kill one of them every `every` seconds, and return the counts and times."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as root, recording_server.running(_LATENCY) as server:
        directory = f"{root}/spool"
        notes: list[str] = []
        started = 0

        def start(place: int) -> BaseProcess:
            nonlocal started
            started += 1
            notes.append(f"{root}/accepted{started}")
            return server_process.start(
                write, started, server.url, directory, notes[-1], pace if place < WRITERS else 0
            )

        processes = [start(place) for place in range(WRITERS + 1)]
        _wait_for_file(directory)
        kills, ends_at = 0, time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(every)
            place = dice.randrange(len(processes))
            _kill(processes[place])
            processes[place] = start(place)
            kills += 1
        for process in processes:
            _kill(process)
            kills += 1
        began = time.monotonic()
        _deliver_rest(server.url, directory)
        took = time.monotonic() - began
        recorded, (overlaps, disordered), gap = server.counts(), server.order(), server.longest_gap()
        whole = _is_whole(directory)
        accepted = {number for path in notes if Path(path).exists() for number in _noted(path)}
    return Found(
        kills=kills,
        accepted=len(accepted),
        delivered=len(recorded),
        lost=len(accepted - recorded.keys()),
        repeated=sum(recorded.values()) - len(recorded),
        unconfirmed=len(recorded.keys() - accepted),
        overlaps=overlaps,
        disordered=disordered,
        seconds=took,
        takeover=gap,
        whole=whole,
    )


def _wait_for_file(directory: str) -> None:
    while not (Path(directory) / "events.db").exists():
        time.sleep(0.01)


def _kill(process: BaseProcess) -> None:
    if process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _deliver_rest(url: str, directory: str) -> None:
    async def deliver() -> None:
        client = AsyncTrackingClient("key", "shop", base_url=url, spool=SqliteSpool(directory))
        async with client:
            while True:
                await asyncio.sleep(0.1)
                spool = client.stats().spool
                if spool is not None and spool.sends and not SqliteSpool(directory).stat().events:
                    return

    asyncio.run(deliver())


def _noted(path: str) -> list[int]:
    content = Path(path).read_bytes()
    whole = content[: len(content) // 16 * 16]
    return [number for first, last in struct.iter_unpack("=qq", whole) for number in range(first, last + 1)]


def _is_whole(directory: str) -> bool:
    connection = sqlite3.connect(Path(directory) / "events.db")
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    finally:
        connection.close()


def run(effort: Effort) -> Section:
    """Kill processes that share a spool for a minute; a quick run takes a tenth of the time."""
    report("torture: killing processes that share a spool")
    found = torture(6.0 if effort.quick else 60.0)
    return Section(
        name="torture",
        title=f"{WRITERS} writers and a sending process on one spool, one of them killed every half second",
        tables=(
            Table(
                title="Figures of the run",
                columns=("figure", "value"),
                rows=(
                    ("processes killed", found.kills),
                    ("events accepted", found.accepted),
                    ("events recorded", found.delivered),
                    ("events lost", found.lost),
                    ("events recorded again", found.repeated),
                    ("events recorded whose caller was killed before the call returned", found.unconfirmed),
                    ("requests that overlap others of the same visitor", found.overlaps),
                    ("events out of order", found.disordered),
                    ("longest time without a request, s", found.takeover),
                    ("from the last kill to an empty spool, s", found.seconds),
                ),
            ),
        ),
        demands=(
            Demand(what="accepted events that are lost", figure=found.lost, bound=0),
            Demand(what="events recorded again", figure=found.repeated, bound=found.allowed),
            Demand(what="overlapping requests", figure=found.overlaps, bound=0),
            Demand(what="events out of order", figure=found.disordered, bound=0),
            Demand(what="longest time without a request", figure=found.takeover, bound=5.0, unit="s"),
            Demand(what="undamaged file", figure=int(found.whole), bound=1, at_least=True),
        ),
    )
