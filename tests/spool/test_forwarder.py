"""The forwarder passes events from the spool's file to the engine, and writes the events' outcomes to the file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    Batching,
    Buffer,
    CustomEvent,
    Rejected,
    SqliteSpool,
)
from retailrocket_async._spool.file import SpoolFile, now
from retailrocket_async.emulator import Settings as EmulatorSettings
from retailrocket_async.emulator import running_emulator
from tests.support.fakes import CODEC, check_balance, event
from tests.support.spools import (
    SHOP,
    NeverLimiter,
    client_of,
    leave_behind,
    numbers,
    until,
    waiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async import UndeliveredEvent
    from retailrocket_async.emulator import RunningEmulator


async def test_what_was_left_behind_is_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If another process left events in the spool, the next client delivers them, even if it tracks no event."""
    await leave_behind(tmp_path, range(1, 2001))
    async with client_of(tmp_path, emulator.url) as client:
        await until(lambda: len(emulator.events()) == 2000)
        assert client.stats().tracked == 0
    assert sorted(numbers(emulator)) == list(range(1, 2001))
    assert waiting(tmp_path) == []


@pytest.mark.untraced
async def test_a_backlog_larger_than_the_window_is_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If far more events wait in the spool than the engine may have at a time, all these events are delivered."""
    small = Batching(max_bytes=10_000, max_in_flight=1, linger=0.01)
    client = client_of(tmp_path, batching=small)
    await client.track_many(
        CustomEvent(name="large", fields={"number": number, "text": "x" * 3000}) for number in range(100)
    )
    await client.aclose(0)
    async with client_of(tmp_path, emulator.url, batching=small) as client:
        await until(lambda: SqliteSpool(tmp_path / "spool").stat().events == 0)
        assert client.stats().requests >= 30


async def test_refused_events_become_dead_letters(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the API refuses an event, the event becomes a dead letter, is reported, and a replay delivers it."""
    reported: list[UndeliveredEvent] = []
    emulator.fail_with("status", status=400, times=1)
    async with client_of(tmp_path, emulator.url, on_outcome=reported.extend) as client:
        receipt = await client.track(event(1))
        assert isinstance(await receipt, Rejected)
        assert client.stats().rejected == 1
        check_balance(client.stats())
        spool = SqliteSpool(tmp_path / "spool")
        [dead] = spool.dead()
        assert (dead.reason, dead.maybe_recorded) == ("rejected: HTTP 400", False)
        await until(lambda: reported)
        assert [each.envelope for each in reported] == [dead.envelope]
        assert spool.replay_dead() == 1
        await until(lambda: numbers(emulator) == [1])


async def test_too_old_events_become_dead_letters(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If an event is older than `max_age`, it becomes a dead letter and is not sent."""
    await leave_behind(tmp_path, range(1, 11))
    await asyncio.sleep(0.1)
    async with client_of(tmp_path, emulator.url, spool={"max_age": 0.1}):
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 10)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"expired"}
    assert emulator.events() == []


async def test_a_clock_that_was_set_back(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If events have a time in the future, they are sent immediately and in the order of their ids."""
    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.open()
    for number, ahead in ((1, 7200.0), (2, 3600.0), (3, 3600.0), (4, 1800.0)):
        with file.transaction():
            file.events.append([CODEC.encode(event(number))], now() + ahead)
    file.close()
    async with client_of(tmp_path, emulator.url, batching=Batching(linger=0.01)):
        async with asyncio.timeout(20):
            await until(lambda: len(emulator.events()) == 4)
    assert numbers(emulator) == [1, 2, 3, 4]


async def test_a_clock_that_was_set_back_keeps_nothing_for_longer(tmp_path: Path) -> None:
    """If events have a time in the future, they still expire when `Buffer.max_age` has passed since they were read."""
    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.open()
    with file.transaction():
        file.events.append([CODEC.encode(event(number)) for number in (1, 2)], now() + 3600.0)
    file.close()
    async with client_of(tmp_path, limiter=NeverLimiter(), buffer=Buffer(max_age=0.5)) as client:
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 2)
        await client.aclose(0)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"expired"}


@pytest.mark.untraced
async def test_a_visitors_events_stay_in_order(tmp_path: Path) -> None:
    """If batching is ordered, each visitor's events are recorded in the order of their calls, even if requests fail."""
    async with running_emulator(EmulatorSettings(limit=None, batch_latency=0.002)) as emulator:
        emulator.fail_with("status", status=503, times=4)
        batching = Batching(max_events=7, linger=0.0)
        async with client_of(tmp_path, emulator.url, batching=batching) as client:
            for number in range(1, 301):
                await client.track(event(number, visitor=f"visitor{number % 5}"))
            await client.flush(30)
        seen: dict[str, list[int]] = {}
        for record in emulator.events():
            seen.setdefault(record.fields["sessionExternalId"], []).append(record.fields["productId"])
        assert all(each == sorted(each) for each in seen.values())
        assert sum(map(len, seen.values())) == 300


async def test_flush_cuts_the_linger_short(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If an event waits for more events in its batch, a flush sends the batch without waiting for `linger`."""
    async with client_of(tmp_path, emulator.url, batching=Batching(linger=1000.0)) as client:
        receipt = await client.track(event(1))
        await client.flush(20)
        assert receipt.done()
