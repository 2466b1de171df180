"""The intake of a spool: accepted events are written to disk; refused events raise an error or are counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    Batching,
    CustomEvent,
    Delivered,
    Dropped,
    EventValidationError,
)
from retailrocket_async._spool.file import SpoolFile
from tests.support.fakes import check_balance, event
from tests.support.spools import (
    client_of,
    numbers,
    waiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


async def test_an_accepted_event_is_on_disk(tmp_path: Path) -> None:
    """If `track` has returned, other processes can read the event in the file."""
    async with client_of(tmp_path) as client:
        for number in range(1, 6):
            await client.track(event(number))
            assert number in waiting(tmp_path)


async def test_a_bad_event_is_refused_at_once(tmp_path: Path) -> None:
    """If an event is invalid or too large, the call raises for this event, but accepts the events before it."""
    async with client_of(tmp_path, batching=Batching(max_bytes=1024)) as client:
        large = CustomEvent(name="large", fields={"text": "x" * 2000})
        with pytest.raises(EventValidationError):
            await client.track(large)
        with pytest.raises(EventValidationError):
            await client.track_many([event(1), event(2), large, event(3)])
        assert waiting(tmp_path) == [1, 2]
        assert client.stats().tracked == 2


async def test_track_nowait(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If an event is tracked with `track_nowait`, it is delivered."""
    async with client_of(tmp_path, emulator.url) as client:
        receipt = client.track_nowait(event(1))
        assert isinstance(await receipt, Delivered)


async def test_cancelled_callers(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If callers are cancelled while they wait for the disk, all other callers' events are accepted and delivered."""
    async with client_of(tmp_path, emulator.url) as client:
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tasks = [asyncio.create_task(client.track(event(number))) for number in range(1, 101)]
            many = asyncio.create_task(client.track_many(event(number) for number in range(101, 201)))
            await asyncio.sleep(0.05)
            for task in (*tasks[::2], many):
                task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, many, return_exceptions=True)
        await client.flush(30)
        accepted = [number for number, result in enumerate(results, 1) if not isinstance(result, BaseException)]
        assert set(range(2, 101, 2)) <= set(accepted)
        assert set(accepted) <= set(numbers(emulator))
        check_balance(client.stats())
        assert client.stats().waiting == 0
        other.close()


async def test_before_send(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If `before_send` drops an event, the event is not sent, and is counted as dropped."""
    keep = lambda each: None if each.product_id % 2 else each  # noqa: E731
    async with client_of(tmp_path, emulator.url, before_send=keep) as client:
        receipts = await client.track_many(event(number) for number in range(1, 7))
        receipts.append(await client.track(event(7)))
        await client.flush(30)
        outcomes = [receipt.outcome for receipt in receipts]
        assert outcomes[::2] == [Dropped(reason="before_send")] * 4
        assert client.stats().dropped_by == {"before_send": {"view": 4}}
        check_balance(client.stats())
    assert numbers(emulator) == [2, 4, 6]


async def test_other_threads(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If events are tracked from another thread with `ThreadsafeHandle.track`, they are delivered."""
    async with client_of(tmp_path, emulator.url) as client:
        handle = client.threadsafe()
        receipts = await asyncio.to_thread(lambda: [handle.track(event(number)) for number in range(1, 21)])
        assert {Delivered} == {type(await receipt) for receipt in receipts}
