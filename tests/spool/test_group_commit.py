"""If a spool is full, `Buffer.overflow` decides: callers wait, calls raise an error, or events are dropped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    Delivered,
    Dropped,
    RetryPolicy,
    SpoolFullError,
)
from tests.support.fakes import check_balance, event
from tests.support.spools import (
    client_of,
    until,
    waiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


async def fill(client: AsyncTrackingClient) -> None:
    """Track events until `track_many` raises."""
    while True:
        await client.track_many(event(number) for number in range(1, 501))


async def test_a_full_spool_blocks_and_then_raises(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the spool is full, `track` waits for `full_timeout` and raises; once there is room, events are accepted."""
    emulator.fail_with("status", status=503, times=10)
    bounds = {"max_bytes": 1 << 20, "full_timeout": 0.2}
    async with client_of(tmp_path, emulator.url, spool=bounds, retry=RetryPolicy(initial_backoff=1.0)) as client:
        with pytest.raises(SpoolFullError):
            await fill(client)
        with pytest.raises(BufferFullError):
            client.track_nowait(event(1))
        check_balance(client.stats())
        emulator.reset()
        await client.flush(30)
        assert isinstance(await (await client.track(event(1))), Delivered)


async def test_room_that_is_made_in_time_is_used(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a caller waits for room, its events are accepted as soon as earlier events have been delivered."""
    emulator.fail_with("status", status=503, times=8)
    bounds = {"max_bytes": 1 << 20, "full_timeout": 30.0}
    async with client_of(tmp_path, emulator.url, spool=bounds) as client:
        receipts = await client.track_many(event(number) for number in range(1, 15_001))
        await client.flush(30)
        assert client.stats().delivered == len(receipts)


@pytest.mark.parametrize("overflow", ["raise", "drop_newest", "drop_oldest"])
async def test_a_full_spool_follows_its_overflow(overflow: Any, tmp_path: Path) -> None:
    """If the spool is full, `overflow` decides: tracking raises, drops the new event, or drops the oldest events."""
    async with client_of(tmp_path, spool={"max_bytes": 1 << 20}, buffer=Buffer(overflow=overflow)) as client:
        filling = asyncio.create_task(fill(client))
        if overflow == "raise":
            with pytest.raises(SpoolFullError):
                await filling
            return
        await until(lambda: client.stats().dropped)
        filling.cancel()
        await asyncio.wait({filling})
        receipt = await client.track(event(7777))
        if overflow == "drop_newest":
            # The first of these events may still fit into the little room that is left.
            async with asyncio.timeout(30):
                while not receipt.done():
                    receipt = await client.track(event(7777))
            assert receipt.outcome == Dropped(reason="overflow")
        else:
            assert 7777 in waiting(tmp_path)
            assert not receipt.done()
        stats = client.stats()
        assert stats.dropped_by == {"overflow": {"view": stats.dropped}}
        check_balance(stats)


async def test_events_in_flight_do_not_make_room(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If `overflow` is "drop_oldest", a full spool drops the oldest events that are not in flight."""
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


async def test_the_disk_is_never_filled(tmp_path: Path) -> None:
    """If less than `min_free` of the disk is free, no event is accepted."""
    bounds = {"min_free": 1 << 60, "full_timeout": 0.05}
    async with client_of(tmp_path, spool=bounds) as client:
        with pytest.raises(SpoolFullError, match="disk"):
            await client.track(event(1))
