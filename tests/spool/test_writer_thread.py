"""The thread that writes to the spool survives failures, loses no event, and ends when the client closes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Delivered,
    Receipt,
    SpoolError,
)
from retailrocket_async._receipt import single_receipt
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.failures import SpoolFileFullError
from retailrocket_async._spool.file import SpoolFile
from tests.support.fakes import CODEC, check_balance, event
from tests.support.spools import (
    KEY,
    NOWHERE,
    QUICK,
    SHOP,
    FailingFile,
    client_of,
    failing_spool,
    impatient,
    numbers,
    spool_thread_ended,
    until,
    writer_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from retailrocket_async._spool.entries import Entry
    from retailrocket_async.emulator import RunningEmulator


def spool_threads() -> set[threading.Thread]:
    """Return all threads of spools in this process that are running."""
    return {thread for thread in threading.enumerate() if thread.name == "retailrocket-spool"}


async def test_the_thread_ends(tmp_path: Path) -> None:
    """If a client is closed, the thread of its spool has ended."""
    before = spool_threads()
    async with client_of(tmp_path) as client:
        await client.track(event(1))
        [thread] = spool_threads() - before

    assert not thread.is_alive()


async def test_another_process_that_holds_the_lock_is_waited_for(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If another connection holds the write lock, `track` waits for the lock, and the event loop runs meanwhile."""
    async with client_of(tmp_path, emulator.url) as client:
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tracking = asyncio.create_task(client.track(event(1)))
            done, _ = await asyncio.wait({tracking}, timeout=0.3)
            assert not done
        assert isinstance(await (await tracking), Delivered)
        other.close()


async def test_a_process_that_is_stopped_while_it_writes(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the write lock is not released, `track` raises after `full_timeout`; after the release, `track` works."""
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


async def test_a_spool_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the spool cannot be opened, entering the client and every `track` raise; the error is logged once."""
    (tmp_path / "spool").mkdir(mode=0o755)
    (tmp_path / "spool").chmod(0o755)
    client = client_of(tmp_path)
    with pytest.raises(SpoolError, match="chmod 700"):
        await client.__aenter__()
    for _ in range(2):
        with pytest.raises(SpoolError, match="chmod 700"):
            await client.track(event(1))
    assert len(caplog.records) == 1
    (tmp_path / "spool").chmod(0o700)
    await asyncio.sleep(0.3)
    await client.track(event(1))
    await client.aclose(0)


async def test_a_file_that_breaks(emulator: RunningEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the disk fails, `track` raises after `full_timeout` and one error is logged; later events are delivered."""
    file = FailingFile(tmp_path / "spool", SHOP)
    spool = failing_spool(tmp_path, file, full_timeout=0.3)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    async with client:
        await (await client.track(event(1)))
        try:
            file.fails.set()
            for number in (2, 3):
                with pytest.raises(SpoolError, match="disk I/O"):
                    await client.track(event(number))
            waiting = asyncio.create_task(client.track(event(4)))
            await asyncio.sleep(0)
        finally:
            file.fails.clear()
        assert isinstance(await (await waiting), Delivered)
        assert client.stats().spool is not None
        assert client.stats().spool.sends
        check_balance(client.stats())
    assert [record.getMessage().startswith("the spool cannot be used") for record in caplog.records] == [True]
    assert numbers(emulator) == [1, 4]


async def test_a_defect_lets_nobody_wait(tmp_path: Path) -> None:
    """If an error of an unexpected type occurs, callers get the error after `full_timeout`, as for a disk error."""
    file = FailingFile(tmp_path / "spool", SHOP, error=ZeroDivisionError())
    file.fails.set()
    spool = failing_spool(tmp_path, file, full_timeout=0.2)
    client = AsyncTrackingClient(KEY, SHOP, base_url=NOWHERE, spool=spool)
    async with asyncio.timeout(10):
        for number in (1, 2):
            with pytest.raises(SpoolError, match="ZeroDivisionError"):
                await client.track(event(number))
        await client.aclose(0)


async def test_a_close_on_a_disk_that_stays_full(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the disk stays full, a close still ends, and the spool's thread ends as well."""
    file = FailingFile(tmp_path / "spool", SHOP, error=SpoolFileFullError("no room"))
    spool = failing_spool(tmp_path, file, full_timeout=0.3)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    receipts = await client.track_many(event(number) for number in range(1, 4))
    await until(lambda: client.stats().requests)
    file.fails.set()
    try:
        late = client.track_nowait(event(4))
        async with asyncio.timeout(20):
            report = await client.aclose(0.1)
        check_balance(report.stats)
        assert all(receipt.done() for receipt in receipts)
        await spool_thread_ended(client)
    finally:
        file.fails.clear()
    await until(late.done)


async def test_interval_brings_events_to_the_disk(tmp_path: Path) -> None:
    """If the spool has `durability="interval"`, an accepted event is written to the database soon afterwards."""
    async with client_of(tmp_path, spool={"durability": "interval"}) as client:
        await client.track(event(424242))
        await until(lambda: b'"productId":424242' in (tmp_path / "spool" / DATABASE).read_bytes())
        await client.aclose(0)


class Listener:
    """A writer's listener that sets the result or the error of each caller's future."""

    def committed(self, entries: Sequence[Entry], last: int, *, claimed: bool) -> None:
        """Set each caller's receipt as the result of its future."""
        for _, receipt, admitted in entries:
            assert admitted is not None
            admitted.set_result(receipt)

    def refused(self, entries: Sequence[Entry], error: Any) -> None:
        """Set the error in each caller's future."""
        for _, _, admitted in entries:
            assert admitted is not None
            admitted.set_exception(error)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class UnexpectedError(BaseException):
    """An error of a type that no code expects."""


@pytest.mark.parametrize("failing", range(0, 40, 2))
async def test_a_clock_that_fails_loses_no_entry(tmp_path: Path, failing: int) -> None:
    """If the clock raises in the spool's thread, every event that the thread has taken is either written or refused."""
    loop = asyncio.get_running_loop()
    calls = itertools.count()

    def clock() -> float:
        if next(calls) in (failing, failing + 1):
            raise UnexpectedError
        return loop.time()

    writer = writer_of(SpoolFile(tmp_path / "spool"), Listener(), clock=clock)
    writer.start()
    results: list[Receipt | BaseException] = []
    async with asyncio.timeout(30):
        for group in range(3):
            waiting: list[asyncio.Future[Receipt]] = [loop.create_future() for _ in range(4)]
            for number, admitted in enumerate(waiting):
                writer.put((CODEC.encode(event(1 + 10 * group + number)), single_receipt("view"), admitted))
            results += await asyncio.gather(*waiting, return_exceptions=True)
        await writer.stop()
    writer.join()
    # If the clock fails in its seventh call or later, the file is already open, so all events are written.
    assert failing < 6 or not any(isinstance(each, BaseException) for each in results)
    file = SpoolFile(tmp_path / "spool")
    file.open()
    assert len(file.events.read(0, 100, 1 << 20).ids) == sum(isinstance(each, Receipt) for each in results)
    file.close()


async def test_a_thread_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system cannot start a thread, `track` raises; once the system can, `track` works."""

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
