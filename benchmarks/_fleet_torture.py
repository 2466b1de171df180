"""Processes that share a spool, and are killed again and again: nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from _process import running
from _section import Demand, Section, Table
from _sink import MARK, Sink, main, taken

from retailrocket_async import AsyncTrackingClient, Batching, SqliteSpool, View

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from _section import Effort

WRITERS = 4
PACE = 2000
"""Events a second of each writer."""

GROUP = 40
BATCHING = Batching()
_STEP = 10**9
_NUMBER = re.compile(rb'"productId":(\d+)')


@attrs.frozen(kw_only=True)
class Found:
    """What became of everything.

    Attributes:
        kills: processes that were killed.
        accepted: events that a caller was told are accepted.
        delivered: different events that the server has recorded.
        lost: accepted events that it has not.
        repeated: recordings beyond the first of an event.
        unannounced: events that it has recorded though no caller was told: killed in between.
        seconds: from the last kill until the spool was empty.
        takeover: the longest time without a request, in seconds.
        whole: whether SQLite finds the file whole.
    """

    kills: int
    accepted: int
    delivered: int
    lost: int
    repeated: int
    unannounced: int
    seconds: float
    takeover: float
    whole: bool

    @property
    def allowed(self) -> int:
        """How many repetitions the contract allows: what was on its way at each kill."""
        return self.kills * BATCHING.max_events * BATCHING.max_in_flight


def write(number: int, port: int, directory: str, told: str, pace: int) -> None:
    """Track events until killed, and note each as soon as it is accepted; with a pace of 0 only deliver."""

    async def track() -> None:
        client = AsyncTrackingClient(
            "key", "shop", base_url=f"http://127.0.0.1:{port}/", spool=SqliteSpool(directory), batching=BATCHING
        )
        async with client:
            # In the system's cache it outlives the process.
            notes = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            loop = asyncio.get_running_loop()
            due, counter = loop.time(), number * _STEP
            while True:
                due += GROUP / (pace or GROUP)
                await asyncio.sleep(max(0.0, due - loop.time()))
                if pace:
                    first = counter + 1
                    counter += GROUP
                    numbers = range(first, counter + 1)
                    await client.track_many(
                        View(session_external_id=f"{MARK.decode()}{each % 97}", product_id=each) for each in numbers
                    )
                    os.write(notes, struct.pack("=qq", first, counter))

    asyncio.run(track())


def torture(seconds: float, *, seed: int = 1, every: float = 0.5, pace: int = PACE) -> Found:
    """Let writers and a drainer share a spool, kill one of them again and again, and count in the end."""
    dice = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root, running(main, Sink(latency=0.02, times=True)) as (port, pipe):
        directory = f"{root}/spool"
        notes: list[str] = []
        born = 0

        def start(place: int) -> BaseProcess:
            nonlocal born
            born += 1
            notes.append(f"{root}/told{born}")
            process = context.Process(
                target=write, args=(born, port, directory, notes[-1], pace if place < WRITERS else 0), daemon=True
            )
            process.start()
            return process

        processes = [start(place) for place in range(WRITERS + 1)]
        _until_there(directory)
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
        _deliver_rest(port, directory)
        took = time.monotonic() - began
        books = taken(pipe)
        whole = _is_whole(directory)
        accepted = {number for path in notes if Path(path).exists() for number in _noted(path)}
    return _counted(accepted, books, kills=kills, seconds=took, whole=whole)


def _counted(accepted: set[int], books: dict[str, Any], **figures: Any) -> Found:
    recorded = Counter(int(each) for body in books["bodies"] for each in _NUMBER.findall(body))
    moments = [at for at, _ in books["arrivals"]]
    return Found(
        accepted=len(accepted),
        delivered=len(recorded),
        lost=len(accepted - recorded.keys()),
        repeated=sum(recorded.values()) - len(recorded),
        unannounced=len(recorded.keys() - accepted),
        takeover=max((after - before for before, after in itertools.pairwise(moments)), default=0.0),
        **figures,
    )


def _until_there(directory: str) -> None:
    while not (Path(directory) / "events.db").exists():
        time.sleep(0.01)


def _kill(process: BaseProcess) -> None:
    if process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _deliver_rest(port: int, directory: str) -> None:
    async def deliver() -> None:
        client = AsyncTrackingClient("key", "shop", base_url=f"http://127.0.0.1:{port}/", spool=SqliteSpool(directory))
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
    """Torture a spool for a minute."""
    print("... killing processes that share a spool", file=sys.stderr, flush=True)
    found = torture(6.0 if effort.quick else 60.0)
    return Section(
        name="torture",
        title=f"{WRITERS} writers and a drainer on one spool, one of them killed each half second",
        tables=(
            Table(
                title="What became of everything",
                columns=("what", "is"),
                rows=(
                    ("killed", found.kills),
                    ("accepted", found.accepted),
                    ("recorded", found.delivered),
                    ("lost", found.lost),
                    ("recorded again", found.repeated),
                    ("recorded, and its caller killed before it was told", found.unannounced),
                    ("longest time without a request, s", found.takeover),
                    ("from the last kill to an empty spool, s", found.seconds),
                ),
            ),
        ),
        demands=(
            Demand(what="accepted events that are lost", figure=found.lost, bound=0),
            Demand(what="events recorded again", figure=found.repeated, bound=found.allowed),
            Demand(what="without a process that sends", figure=found.takeover, bound=5.0, unit="s"),
            Demand(what="whole file", figure=int(found.whole), bound=1, at_least=True),
        ),
    )
