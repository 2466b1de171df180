"""The spool's reader knows which events an earlier process may already have sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async import (
    Batching,
    Delivered,
    RetryPolicy,
    SqliteSpool,
    View,
)
from retailrocket_async._spool.file import SpoolFile, now
from tests.support.fakes import CODEC, event
from tests.support.spools import (
    SHOP,
    NeverLimiter,
    client_of,
    crashed,
    leave_behind,
    numbers,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


async def test_a_crash_leaves_a_mark(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a killed process may have sent events, they are sent again, and their dead letters have `maybe_recorded`."""
    await crashed(tmp_path, emulator)
    emulator.fail_with("status", status=400, times=1)
    async with client_of(tmp_path, emulator.url, batching=Batching(max_events=1)):
        await until(lambda: len(emulator.events()) == 5)
        await until(lambda: list(SqliteSpool(tmp_path / "spool").dead()))
    [dead] = SqliteSpool(tmp_path / "spool").dead()
    assert dead.maybe_recorded


async def test_at_most_once_holds_over_a_crash(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a killed process may have sent an event that `at_most_once` names, the event is not sent again."""
    await crashed(tmp_path, emulator)
    retry = RetryPolicy(at_most_once=(View,))
    async with client_of(tmp_path, emulator.url, retry=retry) as client:
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 6)
        assert isinstance(await (await client.track(event(7))), Delivered)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"at_most_once"}
    assert numbers(emulator) == [7]


async def test_names_of_envelopes_with_spaces(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If an envelope has spaces or escapes before its name, `at_most_once` holds for its event over a crash, too."""
    envelope = (
        b' { "welcomeSequence" : {"sessionExternalId":"a","email":"a@b.ru","timestamp":"2026-01-02T03:04:05+00:00"}}'
    )
    client = client_of(tmp_path, limiter=NeverLimiter())
    await client.__aenter__()
    await client.track_envelopes([envelope, envelope.replace(b"welcome", b"\\u0077elcome")])
    await until(lambda: client.stats().pending_bytes)
    await client.aclose(0)
    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.open()
    file.events.mark_read(2)
    file.close()
    async with client_of(tmp_path, emulator.url):
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 2)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"at_most_once"}
    assert emulator.events() == []


async def test_at_most_once_holds_over_a_crash_and_a_clean_close(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a process opens and closes the spool between the crash and the restart, `at_most_once` events stay unsent."""
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


async def test_a_clean_close_leaves_no_mark(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a client closes without having sent its events, the next client sends them, even with `at_most_once`."""
    await leave_behind(tmp_path, range(1, 6))
    retry = RetryPolicy(at_most_once=(View,))
    async with client_of(tmp_path, emulator.url, retry=retry):
        await until(lambda: len(emulator.events()) == 5)


async def test_outcomes_after_a_takeover(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If another process has read events before, their outcomes have `maybe_duplicate`; other outcomes do not."""
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
    """If events expire, a dead letter has `maybe_recorded` exactly if another process has read the event before."""
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
