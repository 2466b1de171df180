"""The lease is the right to send a spool's events; if its holder ends or is stopped, another process takes it over."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

from retailrocket_async import (
    Batching,
    Delivered,
    SpoolError,
)
from retailrocket_async._spool.file import Settlement, SpoolFile
from tests.support.fakes import check_balance, event
from tests.support.internals import engine_of
from tests.support.spools import (
    client_of,
    impatient,
    may_send,
    numbers,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


def test_one_connection_holds_the_lease(make: Callable[..., SpoolFile]) -> None:
    """If one connection holds the lease, another connection can acquire it only after the first has released it."""
    first, second = make(), make()
    first.open()
    second.open()
    assert first.lease.acquire()
    assert first.lease.acquire()
    assert not second.lease.acquire()
    first.close()
    assert second.lease.acquire()
    second.lease.release()
    first.open()
    assert first.lease.acquire()


async def test_one_of_two_sends(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If two clients share a spool, only one of them sends, and both get the outcomes of their own events."""
    async with client_of(tmp_path, emulator.url) as one:
        await until(lambda: one.stats().spool is not None and one.stats().spool.sends)
        async with client_of(tmp_path, emulator.url) as two:
            ours = await one.track_many(event(number) for number in range(1, 301))
            theirs = await two.track_many(event(number) for number in range(301, 601))
            assert {Delivered} == {type(await receipt) for receipt in ours + theirs}
            assert two.stats().spool is not None
            assert not two.stats().spool.sends
            assert (one.stats().delivered, two.stats().delivered) == (300, 300)
            assert two.stats().requests == 0
            check_balance(one.stats())
            check_balance(two.stats())


async def test_the_next_one_takes_over(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the client that sends is closed, the other client takes over and sends."""
    one = client_of(tmp_path, emulator.url)
    await one.track(event(1))
    await until(lambda: one.stats().delivered)
    async with client_of(tmp_path, emulator.url) as two:
        await one.aclose()
        receipt = await two.track(event(2))
        assert isinstance(await receipt, Delivered)
        assert two.stats().spool is not None
        assert two.stats().spool.sends


def send_for_ever(path: Path, url: str, first: int) -> None:
    """Track an event every 0.02 seconds, and send the events of the spool, until the process is killed."""

    async def main() -> None:
        async with impatient(path, url, batching=Batching(max_events=1)) as client:
            for number in range(first, 1_000_000):
                await client.track(event(number))
                await asyncio.sleep(0.02)

    asyncio.run(main())


async def test_a_sender_that_is_stopped(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the process that sends is stopped, another takes over; when the first process continues, it only tracks."""
    process = multiprocessing.get_context("spawn").Process(target=send_for_ever, args=(tmp_path, emulator.url, 1000))
    process.start()
    try:
        await until(emulator.events)
        async with impatient(tmp_path, emulator.url) as client:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            async with asyncio.timeout(100):
                # If the process was stopped during a transaction, it still has the write lock, so no other process can
                # take its lease. In this case the process runs a little further, until it has released the lock.
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
            # The other process tracks again, and this process sends.
            await until(lambda: len(emulator.events()) > seen + 20)
            assert client.stats().spool.sends  # type: ignore[union-attr]
            await client.flush(30)
    finally:
        process.kill()
        await asyncio.to_thread(process.join)
    sent = numbers(emulator)
    repeated = {number for number in sent if sent.count(number) > 1}
    # Only events that were in flight at the stop are sent twice: one per request, and 8 requests at most.
    assert len(repeated) <= 8
    assert sorted(set(sent) - {1}) == list(range(1000, max(sent) + 1))


async def test_a_sender_that_lost_its_lease(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a process loses the lease, it stops sending, and takes the outcomes of its events from the log."""
    emulator.fail_with("stall", times=100, seconds=60)
    async with impatient(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 6))
        await until(lambda: client.stats().requests)
        other = SpoolFile(tmp_path / "spool", lease_timeout=0.0)
        other.open()
        # With a lease time-out of 0, `other` behaves as if it had seen no heartbeat of this process.
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
    """Try to acquire the lease with `file`. Return True if this has succeeded."""
    with file.transaction():
        return file.lease.acquire()


async def test_nothing_is_sent_after_a_long_stop(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the spool's thread cannot renew the lease in time, the process sends nothing until the lease is renewed."""
    async with impatient(tmp_path, emulator.url) as client:
        await (await client.track(event(1)))
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            # The spool's thread waits for the lock of this transaction, so it cannot renew the lease.
            engine_of(client).writer.poll_log()
            await until(lambda: not may_send(client))
        assert isinstance(await (await client.track(event(2))), Delivered)
        other.close()
