"""What the forwarder and the writer of a spool promise beside delivering: bounds, marks, clocks, and how they end."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    CustomEvent,
    Delivered,
    Dropped,
    RetryPolicy,
    SqliteSpool,
    View,
)
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.event_table import EventTable
from retailrocket_async._spool.failures import SpoolFileFullError
from retailrocket_async._spool.file import Settlement, SpoolFile, now
from retailrocket_async._spool.process_events import SpoolReceipt
from retailrocket_async._spool.writer import SpoolWriter
from retailrocket_async.emulator import Settings as EmulatorSettings
from retailrocket_async.emulator import running_emulator
from tests.spool.test_spool import KEY, QUICK, SHOP, client_of, crashed, numbers, until
from tests.support.fakes import CODEC, check_balance, event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from retailrocket_async import Receipt
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async.emulator import RunningEmulator


@pytest.fixture
async def emulator() -> AsyncGenerator[RunningEmulator]:
    """An emulator of the API in this loop."""
    async with running_emulator(EmulatorSettings(limit=None)) as running:
        yield running


# --- the forwarder --------------------------------------------------------------------------------------------------


async def test_a_backlog_larger_than_the_window_is_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """The bytes of what was delivered are free for the next events: a backlog of many windows does not stall."""
    small = Batching(max_bytes=10_000, max_in_flight=1, linger=0.01)
    client = client_of(tmp_path, batching=small)
    await client.track_many(
        CustomEvent(name="large", fields={"number": number, "text": "x" * 3000}) for number in range(100)
    )
    await client.aclose(0)
    async with client_of(tmp_path, emulator.url, batching=small) as client:
        await until(lambda: SqliteSpool(tmp_path / "spool").stat().events == 0)
        assert client.stats().requests >= 30


class NeverLimiter:
    """A limiter that grants nothing."""

    async def acquire(self) -> None:
        """Wait for ever."""
        await asyncio.get_running_loop().create_future()

    def pause_until(self, deadline: float) -> None:
        """Do nothing."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing."""


async def test_at_most_once_holds_over_a_crash_and_a_clean_close(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What a killed process may have sent is not sent again, though a process in between has closed without sending."""
    await crashed(tmp_path, emulator)
    between = client_of(tmp_path, limiter=NeverLimiter())
    await between.__aenter__()
    await until(lambda: between.stats().pending_bytes)
    await between.aclose(0)
    assert between.stats().requests == 0
    retry = RetryPolicy(at_most_once=(View,))
    async with client_of(tmp_path, emulator.url, retry=retry):
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 6)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"at_most_once"}
    assert emulator.events() == []


async def test_outcomes_after_a_takeover(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What another process may have sent is told as perhaps a duplicate; what it has not read is not."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()
    async with client_of(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 4))
        with other.transaction():
            other.events.mark_read(2)
        other.close()
        outcomes = [await receipt for receipt in receipts]
    assert [(type(each), getattr(each, "maybe_duplicate", None)) for each in outcomes] == [
        (Delivered, True),
        (Delivered, True),
        (Delivered, False),
    ]


async def test_dead_letters_after_a_takeover(tmp_path: Path) -> None:
    """What another process may have sent, and is too old to be sent again, is told as perhaps recorded."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    with other.transaction():
        other.events.append([CODEC.encode(event(number)) for number in range(1, 4)], now() - 100.0)
        other.events.mark_read(2)
    other.close()
    async with client_of(tmp_path, spool={"max_age": 50.0}):
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 3)
    dead = list(SqliteSpool(tmp_path / "spool").dead())
    assert [(each.reason, each.maybe_recorded) for each in dead] == [
        ("expired", True),
        ("expired", True),
        ("expired", False),
    ]


async def test_a_clock_that_was_set_back(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Events of an hour that is still to come are sent now, in their order."""
    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.open()
    for number, ahead in ((1, 7200.0), (2, 3600.0), (3, 3600.0), (4, 1800.0)):
        with file.transaction():
            file.events.append([CODEC.encode(event(number))], now() + ahead)
    file.close()
    async with client_of(tmp_path, emulator.url, batching=Batching(linger=0.01, ordered=True)):
        async with asyncio.timeout(20):
            await until(lambda: len(emulator.events()) == 4)
    assert numbers(emulator) == [1, 2, 3, 4]


async def test_a_clock_that_was_set_back_keeps_nothing_for_longer(tmp_path: Path) -> None:
    """An event of an hour that is still to come is as old as its waiting: `Buffer.max_age` ends it as any other."""
    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.open()
    with file.transaction():
        file.events.append([CODEC.encode(event(number)) for number in (1, 2)], now() + 3600.0)
    file.close()
    async with client_of(tmp_path, limiter=NeverLimiter(), buffer=Buffer(max_age=0.5)) as client:
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 2)
        await client.aclose(0)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"expired"}


# --- the writer -----------------------------------------------------------------------------------------------------


async def test_what_is_on_its_way_does_not_make_room(emulator: RunningEmulator, tmp_path: Path) -> None:
    """With `drop_oldest` a full spool drops the oldest events that are not being sent."""
    emulator.fail_with("stall", times=1000, seconds=60)
    client = client_of(
        tmp_path,
        emulator.url,
        spool={"max_bytes": 1 << 20, "full_timeout": 0.2},
        buffer=Buffer(overflow="drop_oldest"),
        batching=Batching(max_events=5, max_in_flight=1, linger=0.01),
    )
    first = await client.track_many(event(number) for number in range(1, 6))
    await until(lambda: client.stats().requests)
    later = await client.track_many(event(number) for number in range(6, 5001))
    while not client.stats().dropped:
        later += await client.track_many(event(number) for number in range(6, 501))
    await until(lambda: any(receipt.done() for receipt in later))
    assert not any(receipt.done() for receipt in first)
    await client.aclose(0)
    assert not any(isinstance(receipt.outcome, Dropped) for receipt in first)
    check_balance(client.stats())


async def test_interval_brings_events_to_the_disk(tmp_path: Path) -> None:
    """With `durability="interval"` what was accepted is in the database, and flushed, a moment later."""
    async with client_of(tmp_path, spool={"durability": "interval"}) as client:
        await client.track(event(424242))
        await until(lambda: b'"productId":424242' in (tmp_path / "spool" / DATABASE).read_bytes())
        await client.aclose(0)


class FullSpool(SqliteSpool):
    """A spool on a disk that is full from some moment on."""

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return its file."""
        return FullFile(self.path, shop=shop)


class FullFile(SpoolFile):
    """A file that has no room while `full` is set."""

    full = threading.Event()

    def transaction(self) -> Any:
        """Fail, or begin a transaction."""
        if self.full.is_set():
            raise SpoolFileFullError("no room")
        return super().transaction()


async def test_a_close_on_a_disk_that_stays_full(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A close on a disk that stays full ends, and so does the thread."""
    spool = FullSpool(tmp_path / "spool", full_timeout=0.3)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    receipts = await client.track_many(event(number) for number in range(1, 4))
    await until(lambda: client.stats().requests)
    FullFile.full.set()
    try:
        late = client.track_nowait(event(4))
        async with asyncio.timeout(20):
            report = await client.aclose(0.1)
        check_balance(report.stats)
        assert all(receipt.done() for receipt in receipts)
        await until(lambda: not any(thread.name == "retailrocket-spool" for thread in threading.enumerate()))
    finally:
        FullFile.full.clear()
    await until(late.done)


class Listener:
    """The loop's side of a writer: lets callers know."""

    def committed(self, entries: Sequence[Entry], last: int, *, claimed: bool) -> None:
        """Let callers know."""
        for _, receipt, admitted in entries:
            assert admitted is not None
            admitted.set_result(receipt)

    def refused(self, entries: Sequence[Entry], error: Any) -> None:
        """Let callers know."""
        for _, _, admitted in entries:
            assert admitted is not None
            admitted.set_exception(error)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Hiccup(BaseException):
    """An error that nobody expects."""


@pytest.mark.parametrize("failing", range(0, 40, 2))
async def test_a_clock_that_fails_loses_no_entry(tmp_path: Path, failing: int) -> None:
    """Whatever raises while the thread waits for more, what it has taken is written or refused: no call hangs."""
    loop = asyncio.get_running_loop()
    calls = itertools.count()

    def clock() -> float:
        if next(calls) in (failing, failing + 1):
            raise Hiccup
        return loop.time()

    writer = SpoolWriter(
        SpoolFile(tmp_path / "spool"),
        Listener(),  # type: ignore[arg-type]
        loop=loop,
        clock=clock,
        overflow="wait",
        max_bytes=1 << 30,
        min_free=1 << 20,
        patience=5.0,
        flushes=False,
        overflowed=lambda name: name,
    )
    writer.start()
    results: list[Receipt | BaseException] = []
    async with asyncio.timeout(30):
        for group in range(3):
            waiting: list[asyncio.Future[Receipt]] = [loop.create_future() for _ in range(4)]
            for number, admitted in enumerate(waiting):
                writer.put((CODEC.encode(event(1 + 10 * group + number)), SpoolReceipt("view"), admitted))
            results += await asyncio.gather(*waiting, return_exceptions=True)
        await writer.stop()
    writer.join()
    # Only a file that was never opened refuses at once.
    assert failing < 6 or not any(isinstance(each, BaseException) for each in results)
    file = SpoolFile(tmp_path / "spool")
    file.open()
    assert len(file.events.read(0, 100, 1 << 20).ids) == sum(isinstance(each, SpoolReceipt) for each in results)
    file.close()


async def test_the_log_is_read_once_more_after_a_failure(tmp_path: Path) -> None:
    """If the file fails while it is asked what became of events, it is asked again, and nobody waits for ever."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()

    class Spool(SqliteSpool):
        def file(self, shop: str | None = None) -> SpoolFile:
            return ForgetfulFile(self.path, shop=shop)

    class ForgetfulFile(SpoolFile):
        def __init__(self, directory: Path, **options: Any) -> None:
            super().__init__(directory, **options)
            self.events = ForgetfulTable(self._database, directory)

    class ForgetfulTable(EventTable):
        failures = 3

        def waiting_between(self, first: int, last: int) -> list[int]:
            ForgetfulTable.failures -= 1
            if ForgetfulTable.failures >= 0:
                raise OSError
            return super().waiting_between(first, last)

    client = AsyncTrackingClient(KEY, SHOP, base_url="http://127.0.0.1:9/", spool=Spool(tmp_path / "spool"))
    receipts = await client.track_many(event(number) for number in range(1, 4))
    with other.transaction():
        other.settle(Settlement([(1, 1)], "forgotten"), 1.0)
        other.settle(Settlement([(2, 2)], '["Delivered",{"status":200},""]'), 1e10)
    async with asyncio.timeout(30):
        assert [getattr(await each, "reason", "delivered") for each in receipts[:2]] == ["untold", "delivered"]
    other.close()
    await client.aclose(0)
