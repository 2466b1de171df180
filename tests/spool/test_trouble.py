"""A spool in trouble: its directory is removed, its bytes change, its sender is stopped, its thread ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Batching,
    ConfigurationError,
    Delivered,
    Kept,
    Receipt,
    SpoolError,
    SqliteSpool,
)
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async._spool.file_lock import FileLock, LockTimeoutError
from retailrocket_async._spool.writer_thread import WriterThread
from retailrocket_async.emulator import Settings as EmulatorSettings
from retailrocket_async.emulator import running_emulator
from tests.spool.test_spool import KEY, QUICK, SHOP, client_of, leave_behind, numbers, until, waiting
from tests.support.fakes import CODEC, check_balance, event
from tests.support.internals import engine_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from retailrocket_async import StateChange, UndeliveredEvent
    from retailrocket_async.emulator import RunningEmulator

SILENCE = 1.5
"""Seconds after which a sender that is stopped is replaced in these tests."""


@pytest.fixture
async def emulator() -> AsyncGenerator[RunningEmulator]:
    """An emulator of the API in this loop."""
    async with running_emulator(EmulatorSettings(limit=None)) as running:
        yield running


class ImpatientSpool(SqliteSpool):
    """A spool whose sender is replaced soon."""

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return its file."""
        return SpoolFile(self.path, shop=shop, lease_timeout=SILENCE, patience=1.0)


def impatient(path: Path, url: str, **options: Any) -> AsyncTrackingClient:
    """Return a client that replaces a sender that is stopped."""
    spool = ImpatientSpool(path / "spool", full_timeout=1.0)
    return AsyncTrackingClient(KEY, SHOP, base_url=url, spool=spool, retry=QUICK, rate_limit=None, **options)


# --- the directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a\0b", b"bytes", b"\0"], ids=["nul", "bytes", "bytes with nul"])
def test_a_path_that_cannot_be(path: Any) -> None:
    """A path that no system takes is refused at construction."""

    class PathLike:
        def __fspath__(self) -> Any:
            return path

    with pytest.raises(ConfigurationError, match="SqliteSpool"):
        SqliteSpool(PathLike())


async def test_a_directory_that_is_removed(tmp_path: Path) -> None:
    """After its directory was removed, `track` raises, and no receipt says that an event is kept."""
    client = client_of(tmp_path, spool={"full_timeout": 0.2})
    first = await client.track_many(event(number) for number in range(1, 4))
    await until(lambda: client.stats().requests)
    shutil.rmtree(tmp_path / "spool")
    with pytest.raises(SpoolError, match="removed or replaced"):
        await client.track(event(4))
    assert "removed or replaced" in str(client.stats().spool.failure)  # type: ignore[union-attr]
    report = await client.aclose(0)
    assert [type(receipt.outcome) for receipt in first] == [Abandoned] * 3
    assert {receipt.outcome.reason for receipt in first} == {"lost"}  # type: ignore[union-attr]
    assert report.stats.kept == 0
    assert len(report.undelivered) == 3
    check_balance(report.stats)


async def test_a_directory_that_is_removed_while_nothing_is_tracked(tmp_path: Path) -> None:
    """A directory that was removed is noticed though nobody tracks, and a close that follows tells the truth."""
    client = client_of(tmp_path)
    [receipt] = await client.track_many([event(1)])
    shutil.rmtree(tmp_path / "spool")
    await until(lambda: client.stats().spool.failure)  # type: ignore[union-attr]
    await client.aclose(0)
    assert isinstance(receipt.outcome, Abandoned)
    assert receipt.outcome.reason == "lost"


async def test_a_directory_that_comes_back(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A directory that is away for a moment costs nothing: callers wait, and everything is delivered once."""
    emulator.fail_with("status", status=503, times=10)
    async with client_of(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 11))
        (tmp_path / "spool").rename(tmp_path / "away")
        late = asyncio.create_task(client.track(event(11)))
        await until(lambda: client.stats().spool.failure)  # type: ignore[union-attr]
        assert not late.done()
        assert not (tmp_path / "spool").exists()
        (tmp_path / "away").rename(tmp_path / "spool")
        receipts.append(await late)
        assert {type(await receipt) for receipt in receipts} == {Delivered}
        assert client.stats().spool.failure is None  # type: ignore[union-attr]
    assert sorted(numbers(emulator)) == list(range(1, 12))


@pytest.mark.parametrize("what", ["directory", "database"])
async def test_a_spool_that_is_replaced(emulator: RunningEmulator, tmp_path: Path, what: str) -> None:
    """With another spool in its place, old events are told as lost, and no event of the new one pays for an old one."""
    await leave_behind(tmp_path / "other", range(101, 106))
    told: list[UndeliveredEvent] = []
    client = client_of(tmp_path, on_outcome=told.extend)
    first = await client.track_many(event(number) for number in range(1, 4))
    await until(lambda: client.stats().requests)
    if what == "directory":
        (tmp_path / "spool").rename(tmp_path / "away")
        (tmp_path / "other" / "spool").rename(tmp_path / "spool")
    else:
        (tmp_path / "other" / "spool" / DATABASE).replace(tmp_path / "spool" / DATABASE)
        for name in ("wal", "shm"):
            (tmp_path / "spool" / f"{DATABASE}-{name}").unlink(missing_ok=True)
    assert {type(await receipt) for receipt in first} == {Abandoned}
    assert {receipt.outcome.reason for receipt in first} == {"lost"}  # type: ignore[union-attr]
    receipt = await client.track(event(4))
    assert sorted(waiting(tmp_path)) == [4, *range(101, 106)]
    await until(lambda: len(told) == 3)
    report = await client.aclose(0)
    assert isinstance(receipt.outcome, Kept)
    assert sorted(waiting(tmp_path)) == [4, *range(101, 106)]
    check_balance(report.stats)


async def test_a_lock_file_that_is_removed(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Lock files that somebody removes are made again; two processes never hold the same lock."""
    async with client_of(tmp_path, emulator.url) as client:
        await (await client.track(event(1)))
        (tmp_path / "spool" / "write.lock").unlink()
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tracking = asyncio.create_task(client.track(event(2)))
            done, _ = await asyncio.wait({tracking}, timeout=0.3)
            assert not done
        assert isinstance(await (await tracking), Delivered)
        (tmp_path / "spool" / "drain.lock").unlink()
        assert isinstance(await (await client.track(event(3))), Delivered)
        other.close()
    assert numbers(emulator) == [1, 2, 3]


# --- locks ----------------------------------------------------------------------------------------------------------


async def test_a_process_that_is_stopped_while_it_writes(emulator: RunningEmulator, tmp_path: Path) -> None:
    """While another process holds the lock for good `track` waits for its time and raises, and a close ends."""
    async with impatient(tmp_path, emulator.url) as client:
        await (await client.track(event(1)))
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            with pytest.raises(SpoolError, match="another process has held"):
                await client.track(event(2))
            late = asyncio.create_task(client.track(event(3)))
            await asyncio.sleep(0)
        assert isinstance(await (await late), Delivered)
        other.close()
    assert numbers(emulator) == [1, 3]


def test_a_lock_that_came_too_late_is_given_back(tmp_path: Path) -> None:
    """A lock that the system grants after its caller has given up is free for others, and for the next call."""
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with one.held():
        with pytest.raises(LockTimeoutError), two.held(0.05):
            pass
        with pytest.raises(LockTimeoutError), two.held(0.05):
            pass
    for _ in range(20):
        with two.held(10.0), pytest.raises(LockTimeoutError), one.held(0.01):
            pass
        with one.held(10.0):
            pass


def test_a_lock_counts_while_its_file_is_there(tmp_path: Path) -> None:
    """Whoever holds the lock of a file that was replaced knows that it holds nothing."""
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire_now()
    assert not two.acquire_now()
    two.seize()
    assert two.acquire_now()
    assert not one.is_current()
    assert not one.acquire_now()
    two.release()
    assert one.acquire_now()


# --- a sender that is stopped ---------------------------------------------------------------------------------------


def send_for_ever(path: Path, url: str, first: int) -> None:
    """Track an event every now and then, and send what is in the spool."""

    async def main() -> None:
        async with impatient(path, url, batching=Batching(max_events=1)) as client:
            for number in range(first, 1_000_000):
                await client.track(event(number))
                await asyncio.sleep(0.02)

    asyncio.run(main())


async def test_a_sender_that_is_stopped(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A sender that is stopped is replaced; once it goes on, it sends nothing, and tracks as before."""
    process = multiprocessing.get_context("spawn").Process(target=send_for_ever, args=(tmp_path, emulator.url, 1000))
    process.start()
    try:
        await until(emulator.events)
        async with impatient(tmp_path, emulator.url) as client:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            async with asyncio.timeout(20 * SILENCE):
                # A process that was stopped in the middle of a write keeps the lock; then this one is not replaced.
                while True:
                    try:
                        receipt = await client.track(event(1))
                        break
                    except SpoolError:
                        os.kill(process.pid, signal.SIGCONT)
                        await asyncio.sleep(0.05)
                        os.kill(process.pid, signal.SIGSTOP)
                assert isinstance(await receipt, Delivered)
            assert client.stats().spool.sends  # type: ignore[union-attr]
            seen = len(emulator.events())
            os.kill(process.pid, signal.SIGCONT)
            # The other one tracks on, and this one sends.
            await until(lambda: len(emulator.events()) > seen + 20)
            assert client.stats().spool.sends  # type: ignore[union-attr]
            await client.flush(30)
    finally:
        process.kill()
        await asyncio.to_thread(process.join)
    sent = numbers(emulator)
    repeated = {number for number in sent if sent.count(number) > 1}
    # What was on its way when it was stopped: `Batching.max_in_flight` requests.
    assert len(repeated) <= 8
    assert sorted(set(sent) - {1}) == list(range(1000, max(sent) + 1))


async def test_a_sender_that_lost_its_place(emulator: RunningEmulator, tmp_path: Path) -> None:
    """One whose place was taken sends no more, writes no outcome, and hears of its events from the log."""
    emulator.fail_with("stall", times=100, seconds=60)
    async with impatient(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 6))
        await until(lambda: client.stats().requests)
        other = SpoolFile(tmp_path / "spool", lease_timeout=0.0)
        other.open()
        # As a process that has seen no sign of life from this one.
        await until(lambda: taken_over(other))
        await until(lambda: not client.stats().spool.sends)  # type: ignore[union-attr]
        assert client.stats().in_flight == 0
        assert not any(receipt.done() for receipt in receipts)
        requests = client.stats().requests
        with other.transaction():
            other.settle(Settlement([(1, 5)], '["Delivered",{"status":200},""]'), 1e10)
        assert [await receipt for receipt in receipts] == [Delivered(status=200)] * 5
        assert client.stats().requests == requests
        check_balance(client.stats())
        other.close()


def taken_over(file: SpoolFile) -> bool:
    """Return whether a connection has taken the place of the process that sends."""
    with file.transaction():
        return file.lease.acquire()


async def test_nothing_is_sent_after_a_long_stop(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A process whose thread did not run for long sends nothing until it knows that no other one does."""
    async with impatient(tmp_path, emulator.url) as client:
        await (await client.track(event(1)))
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            # The thread waits, as if stopped: this process cannot know who sends.
            engine_of(client).writer.poll_log()
            await until(lambda: not engine_of(client)._may_send())
        assert isinstance(await (await client.track(event(2))), Delivered)
        other.close()


# --- a defect of the thread -----------------------------------------------------------------------------------------


async def test_a_thread_that_ends_all_the_same(
    emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a defect ends the thread nothing is sent any more; counters, log and hook tell, and a second process sends."""
    emulator.fail_with("status", status=503, times=1000)
    changes: list[StateChange] = []
    client = client_of(tmp_path, emulator.url, on_state_change=changes.append)
    receipts = await client.track_many(event(number) for number in range(1, 101))
    await until(lambda: client.stats().requests)
    step = WriterThread._step
    monkeypatch.setattr(WriterThread, "_step", lambda self: 1 // 0)
    await until(lambda: client.stats().state == "halted")
    monkeypatch.setattr(WriterThread, "_step", step)
    with pytest.raises(SpoolError, match="ZeroDivisionError"):
        await client.track(event(101))
    with pytest.raises(SpoolError, match="ZeroDivisionError"):
        await client.flush(5)
    assert "ended the spool's thread" in str(client.stats().spool.failure)  # type: ignore[union-attr]
    assert not client.stats().spool.sends  # type: ignore[union-attr]
    await until(lambda: any(change.failure == "spool" for change in changes))
    assert [change.state for change in changes if change.failure == "spool"] == ["halted"]
    assert sum("ended the spool's thread" in record.getMessage() for record in caplog.records) == 1
    assert {type(receipt.outcome) for receipt in receipts} == {Kept}
    engine = engine_of(client).engine.stats()
    assert (engine.in_flight, engine.pending) == (0, 0)
    requests = client.stats().requests
    emulator.reset()
    async with client_of(tmp_path, emulator.url) as other:
        await until(lambda: len(emulator.events()) == 100)
        assert other.stats().requests
    assert client.stats().requests == requests
    async with asyncio.timeout(10):
        report = await client.aclose()
    check_balance(report.stats)


async def test_a_thread_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system starts no further thread `track` raises, and works once it does."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("none can be started")

    client = client_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(SpoolError, match="none can be started"):
                await client.track(event(1))
    assert isinstance(await client.track(event(1)), Receipt)
    await client.aclose(0)


# --- outcomes that could not be written -----------------------------------------------------------------------------


class StuckSpool(SqliteSpool):
    """A spool that takes no outcome while `stuck` is set."""

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return its file."""
        return StuckFile(self.path, shop=shop)


class StuckFile(SpoolFile):
    """A file whose disk has no room for outcomes."""

    stuck = threading.Event()

    def settle(self, settlement: Settlement, now: float) -> None:
        """Fail, or settle."""
        if self.stuck.is_set():
            raise SpoolError("no room for outcomes")
        super().settle(settlement, now)


async def test_an_outcome_that_could_not_be_written(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What was delivered, and could not be written down by the close, is kept and may be recorded; the close ends."""
    spool = StuckSpool(tmp_path / "spool", full_timeout=0.5)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    StuckFile.stuck.set()
    try:
        receipts = await client.track_many(event(number) for number in range(1, 4))
        await until(lambda: len(emulator.events()) == 3)
        async with asyncio.timeout(20):
            report = await client.aclose(0.1)
    finally:
        StuckFile.stuck.clear()
    assert [receipt.outcome.maybe_recorded for receipt in receipts] == [True] * 3  # type: ignore[union-attr]
    assert {type(receipt.outcome) for receipt in receipts} == {Kept}
    check_balance(report.stats)


async def test_what_another_process_may_have_sent_is_kept_as_such(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A process that closes while another one sends its events does not say that they were not recorded."""
    emulator.fail_with("stall", times=100, seconds=60)
    async with client_of(tmp_path, emulator.url) as one:
        await until(lambda: one.stats().spool.sends)  # type: ignore[union-attr]
        two = client_of(tmp_path, emulator.url)
        receipts = await two.track_many(event(number) for number in range(1, 4))
        await until(lambda: one.stats().requests)
        await two.aclose(0)
        assert [receipt.outcome for receipt in receipts] == [Kept(maybe_recorded=True)] * 3
        await one.aclose(0)


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.events.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def spool_of(path: Path, count: int) -> Path:
    """Make a spool of so many events, all of them in the database; return the database."""
    file = SpoolFile(path / "spool", shop=SHOP)
    file.open()
    with file.transaction():
        file.events.append([CODEC.encode(event(number)) for number in range(1, count + 1)], 1e10)
    file.close()
    return path / "spool" / DATABASE


async def test_a_damaged_page_is_found_when_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A spool whose pages are damaged is refused when it is opened, with what saves the rest of it."""
    database = spool_of(tmp_path, 3000)
    # The header of a page of events: the offsets of its cells.
    flip(database, 40 * 4096 + 9, 0xFF)
    client = client_of(tmp_path)
    with pytest.raises(SpoolError, match=r"damaged.*spool export"):
        await client.__aenter__()
    with pytest.raises(SpoolError, match="damaged"):
        await client.track(event(1))
    assert "damaged" in str(client.stats().spool.failure)  # type: ignore[union-attr]
    assert sum("damaged" in record.getMessage() for record in caplog.records) == 1
    await client.aclose(0)


async def test_a_page_that_is_damaged_later(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A page that is damaged while the spool is open is told of, and from then on nothing is accepted."""
    database = spool_of(tmp_path, 30_000)
    emulator.fail_with("stall", times=1, seconds=1.0)
    client = client_of(tmp_path, emulator.url)
    await client.track(event(1))
    for page in range(20, database.stat().st_size // 4096, 3):
        flip(database, page * 4096 + 9, 0xFF)
    await until(lambda: "damaged" in str(client.stats().spool.failure))  # type: ignore[union-attr]
    with pytest.raises(SpoolError, match=r"damaged.*spool export"):  # noqa: PT012 - from one moment on
        while True:
            await client.track(event(1))
    await client.aclose(0)


@pytest.mark.parametrize("before", [b'"productId":7', b'"view"'])
async def test_a_damaged_event_is_set_aside(
    emulator: RunningEmulator, tmp_path: Path, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An event whose JSON is damaged becomes a dead letter, and all others are delivered."""
    database = spool_of(tmp_path, 20)
    content = database.read_bytes()
    flip(database, content.index(before, content.index(b'"productId":7') - 200) + 1, 0x80)
    async with client_of(tmp_path, emulator.url):
        await until(lambda: len(emulator.events()) == 19)
        await until(lambda: not waiting(tmp_path))
    [dead] = SqliteSpool(tmp_path / "spool").dead()
    assert dead.reason == "damaged"
    assert len(set(numbers(emulator))) == 19
    assert sum("damaged on disk" in record.getMessage() for record in caplog.records) == 1


async def test_a_damaged_log_stops_nobody(emulator: RunningEmulator, tmp_path: Path) -> None:
    """An outcome in the log that cannot be read is told as not known, and everything else goes on."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()
    async with client_of(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 4))
        with closing(sqlite3.connect(tmp_path / "spool" / DATABASE, isolation_level=None)) as connection:
            connection.execute("DELETE FROM event WHERE id <= 2")
            connection.execute("INSERT INTO settled (at, ids, outcome) VALUES (1e10, '[[1,', 'x')")
            connection.execute("INSERT INTO settled (at, ids, outcome) VALUES (1e10, '[[2,2]]', '[\"Newer\",{},\"\"]')")
        assert [(await receipt).reason for receipt in receipts[:2]] == ["untold"] * 2  # type: ignore[union-attr]
        other.close()
        assert isinstance(await receipts[2], Delivered)
        check_balance(client.stats())
