"""A client with a spool delivers events, flushes and closes without losing an event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    ClientClosedError,
    Delivered,
    FlushTimeoutError,
    Kept,
    KeptError,
    RetryPolicy,
)
from tests.support.fakes import check_balance, event
from tests.support.spools import (
    client_of,
    numbers,
    until,
    waiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


async def test_events_are_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If events are tracked, all are delivered, their outcomes are `Delivered`, and the file is empty afterwards."""
    async with client_of(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 1201))
        receipts.append(await client.view(session_external_id="visitor", product_id=1201))
        await client.flush()
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
        check_balance(client.stats())
        assert client.stats().delivered == 1201
    assert sorted(numbers(emulator)) == list(range(1, 1202))
    assert waiting(tmp_path) == []


async def test_interval(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the spool has `durability="interval"`, all tracked events are delivered."""
    async with client_of(tmp_path, emulator.url, spool={"durability": "interval"}) as client:
        receipts = await client.track_many(event(number) for number in range(1, 101))
        await client.flush(30)
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_a_close_keeps_what_it_cannot_deliver(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the API is down, a close loses no event, and the outcome of every receipt is `Kept`."""
    emulator.fail_with("status", status=503, times=10_000)
    client = client_of(tmp_path, emulator.url)
    receipts = await client.track_many(event(number) for number in range(1, 1001))
    await until(lambda: client.stats().state == "down")
    report = await client.aclose(20.0)
    assert all(isinstance(receipt.outcome, Kept) for receipt in receipts)
    with pytest.raises(KeptError):
        await receipts[0].delivered()
    assert report.stats.kept == 1000
    assert report.undelivered == ()
    check_balance(report.stats)
    assert sorted(waiting(tmp_path)) == list(range(1, 1001))
    with pytest.raises(ClientClosedError):
        await client.track(event(1))


async def test_an_outage_costs_nothing(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If an outage lasts longer than all retries, events stay in the file and are delivered after the outage."""
    emulator.fail_with("status", status=503, times=60)
    retry = RetryPolicy(initial_backoff=0.01, max_backoff=0.02, max_attempts=2, max_elapsed=0.1)
    async with client_of(tmp_path, emulator.url, retry=retry) as client:
        receipts = await client.track_many(event(number) for number in range(1, 1001))
        await client.flush(30)
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_a_wrong_key_costs_nothing(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If events are refused for a wrong key, they stay in the file, and a client with the right key delivers them."""
    client = client_of(tmp_path, emulator.url, key="wrong", retry=RetryPolicy(max_halt=0.0))
    receipts = await client.track_many(event(number) for number in range(1, 11))
    await until(lambda: client.stats().state == "halted")
    report = await client.aclose()
    assert [type(receipt.outcome) for receipt in receipts] == [Kept] * 10
    assert report.error is not None
    async with client_of(tmp_path, emulator.url):
        await until(lambda: len(emulator.events()) == 10)


async def test_direct_sends_pass_the_spool(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Events of `send` and `send_batch` are delivered immediately and are counted."""
    async with client_of(tmp_path, emulator.url) as client:
        assert isinstance(await client.send(event(1)), Delivered)
        assert isinstance(await client.send_batch([event(2), event(3)]), Delivered)
        stats = client.stats()
        assert (stats.tracked, stats.delivered) == (3, 3)
        check_balance(stats)


async def test_flush_has_a_deadline(tmp_path: Path) -> None:
    """If the time-out of a flush passes, the flush raises an error, and the events stay in the spool."""
    async with client_of(tmp_path) as client:
        await client.track(event(1))
        with pytest.raises(FlushTimeoutError, match="stay in the spool"):
            await client.flush(0.05)


async def test_closing_twice(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If `aclose` is called several times, all calls return the same report; an unused client makes no directory."""
    client = client_of(tmp_path, emulator.url)
    await client.track(event(1))
    first, second = await asyncio.gather(client.aclose(), client.aclose())
    assert first is second
    assert await client.aclose() is first
    unused = client_of(tmp_path / "other")
    await unused.aclose()
    assert not (tmp_path / "other").exists()


async def test_a_closed_client_lets_nobody_wait(tmp_path: Path) -> None:
    """If a client is closed, a flush that is waiting returns, and every later flush returns immediately."""
    client = client_of(tmp_path)
    await client.track(event(1))
    flushing = asyncio.create_task(client.flush())
    await asyncio.sleep(0)
    await client.aclose(0)
    async with asyncio.timeout(10):
        await flushing
        await client.flush()
    with pytest.raises(ClientClosedError):
        await client.track(event(2))


async def test_a_cancelled_close_keeps_everything(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a close is cancelled, every outcome is `Kept`, and the events in flight have `maybe_recorded`."""
    emulator.fail_with("stall", times=100, seconds=60)
    client = client_of(tmp_path, emulator.url)
    receipts = await client.track_many(event(number) for number in range(1, 1001))
    await until(lambda: client.stats().requests)
    closing = asyncio.create_task(client.aclose(60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    report = await client.aclose()
    assert report.stats.kept == 1000
    assert all(isinstance(receipt.outcome, Kept) for receipt in receipts)
    assert any(receipt.outcome == Kept(maybe_recorded=True, attempts=1) for receipt in receipts)


async def test_the_key_is_in_no_file(emulator: RunningEmulator, tmp_path: Path) -> None:
    """The files of a spool contain neither the API key nor the query of the request's address."""
    client = client_of(tmp_path, emulator.url, key="a-secret-key-of-this-test")
    await client.track(event(1))
    await until(lambda: client.stats().requests)
    content = b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())
    await client.aclose(0)
    assert b"a-secret-key" not in content
    assert b"apiKey" not in content
