"""If the power is cut at any moment, a spool with `durability="commit"` still has every accepted event.

A process tracks events; a library that is preloaded into the process records every write and flush of the database.
The test then chooses random moments. For each moment the test builds the files that a power cut would leave: some or
all of the writes since the last flush of each file are lost. Then the test opens these files as a spool.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson
import pytest

from retailrocket_async import SqliteSpool

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_server("gcc")

CUTS = 60

PROGRAM = """
import asyncio, os, struct, sys
from retailrocket_async import AsyncTrackingClient, Batching, Buffer, RetryPolicy, SqliteSpool, View

log = os.open(os.environ["POWERCUT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def main(path, durability):
    spool = SqliteSpool(path, durability=durability)
    client = AsyncTrackingClient("key", "shop", base_url="http://127.0.0.1:9/", spool=spool)

    async def caller(first):
        for number in range(first, first + 100):
            await client.track(View(session_external_id="visitor", product_id=number))
            os.write(log, struct.pack("=cbqI", b"A", 0, number, 0))

    # Many callers, so that groups of all sizes are written.
    await asyncio.gather(*(caller(1 + 100 * each) for each in range(20)))
    os._exit(0)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


class Record(NamedTuple):
    """One recorded call of the process (see powercut.c); kind "A" means that event number `at` was accepted."""

    kind: str
    file: int
    at: int
    data: bytes


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that records the calls, and return its path."""
    built = tmp_path_factory.mktemp("powercut") / "powercut.so"
    source = Path(__file__).with_name("powercut.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built


def recorded(library: Path, path: Path, durability: str) -> list[Record]:
    """Run `PROGRAM`, which tracks events, and return the calls that the library has recorded."""
    log = path / "log"
    watched = {"LD_PRELOAD": str(library), "POWERCUT_LOG": str(log), "POWERCUT_MATCH": "events.db"}
    command = [sys.executable, "-c", PROGRAM, str(path / "spool"), durability]
    subprocess.run(command, check=True, env={**os.environ, **watched})
    return list(parsed(log.read_bytes()))


def parsed(log: bytes) -> Iterator[Record]:
    """Yield the recorded calls from the bytes of a log."""
    position = 0
    while position < len(log):
        kind, file, at, length = struct.unpack_from("=cbqI", log, position)
        position += 14
        yield Record(kind.decode(), file, at, log[position : position + length])
        position += length


def left_over(records: list[Record], chance: float, dice: random.Random) -> dict[str, bytes]:
    """Return the files after a power cut at the end of `records`; `chance` is the probability that a write survives."""
    names: dict[int, str] = {}
    files: dict[int, bytearray] = {}
    unflushed: dict[int, list[Record]] = {}
    for record in records:
        if record.kind == "N":
            names[record.file] = Path(record.data.decode()).name
            files.setdefault(record.file, bytearray())
        elif record.kind == "U":
            # A removal cannot be lost, because SQLite flushes the directory before it relies on the removal.
            files.pop(record.file, None)
            unflushed.pop(record.file, None)
        elif record.kind in "WT":
            files.setdefault(record.file, bytearray())
            unflushed.setdefault(record.file, []).append(record)
        elif record.kind == "S" and record.file in files:
            for each in unflushed.pop(record.file, []):
                apply(files[record.file], each)
    for number, pending in unflushed.items():
        for each in pending:
            if dice.random() < chance:
                apply(files[number], each)
    return {names[number]: bytes(file) for number, file in files.items() if not names[number].endswith("-shm")}


def apply(file: bytearray, record: Record) -> None:
    """Apply a recorded write or truncation to the content of a file."""
    if record.kind == "T":
        del file[record.at :]
        file.extend(bytes(record.at - len(file)))
    else:
        file.extend(bytes(max(0, record.at - len(file))))
        file[record.at : record.at + len(record.data)] = record.data


def lost(records: list[Record], path: Path, seed: int) -> list[int]:
    """Simulate `CUTS` power cuts. Return for each cut how many accepted events are missing; damaged files raise."""
    dice = random.Random(seed)
    counts: list[int] = []
    accepted_from = next(number for number, record in enumerate(records) if record.kind == "A")
    for cut in range(CUTS):
        upto = dice.randrange(accepted_from, len(records))
        before = records[: upto + 1]
        directory = path / f"cut{cut}"
        directory.mkdir(mode=0o700)
        for name, content in left_over(before, dice.choice([0.0, 0.5]), dice).items():
            (directory / name).write_bytes(content)
        accepted = {record.at for record in before if record.kind == "A"}
        found = {orjson.loads(each.envelope)["view"]["productId"] for each in SqliteSpool(directory).events()}
        counts.append(len(accepted - found))
    return counts


def test_commit_loses_nothing(library: Path, tmp_path: Path) -> None:
    """If the spool has `durability="commit"`, a power cut neither loses an accepted event nor damages the file."""
    records = recorded(library, tmp_path, "commit")
    assert sum(record.kind == "A" for record in records) == 2000
    assert lost(records, tmp_path, seed=1) == [0] * CUTS


def test_interval_loses_the_last_moment(library: Path, tmp_path: Path) -> None:
    """If the spool has `durability="interval"`, a power cut may lose accepted events, but never damages the file."""
    records = recorded(library, tmp_path, "interval")
    assert any(lost(records, tmp_path, seed=2))
