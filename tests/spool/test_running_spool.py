"""A spool whose file is removed or replaced, or whose thread ends, while the client runs."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Delivered,
    Kept,
    SpoolError,
)
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.file import Settlement, SpoolFile
from tests.support.fakes import check_balance, event
from tests.support.internals import engine_of
from tests.support.spools import (
    KEY,
    QUICK,
    SHOP,
    client_of,
    defective_spool_threads,
    leave_behind,
    numbers,
    spool_thread_ended,
    spool_with,
    until,
    waiting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async import StateChange, UndeliveredEvent
    from retailrocket_async.emulator import RunningEmulator


async def test_a_directory_that_is_removed(tmp_path: Path) -> None:
    """If the directory is removed, `track` raises, and earlier events end as `Abandoned`, not as `Kept`."""
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
    """If the directory is removed while no event is tracked, the client notices it, and its events count as lost."""
    client = client_of(tmp_path)
    [receipt] = await client.track_many([event(1)])
    shutil.rmtree(tmp_path / "spool")
    await until(lambda: client.stats().spool.failure)  # type: ignore[union-attr]
    await client.aclose(0)
    assert isinstance(receipt.outcome, Abandoned)
    assert receipt.outcome.reason == "lost"


async def test_a_directory_that_comes_back(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the directory is moved away and back, callers wait meanwhile, and every event is delivered once."""
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
    """If another spool replaces the first, the first spool's events are lost, and the second spool's events stay."""
    await leave_behind(tmp_path / "other", range(101, 106))
    reported: list[UndeliveredEvent] = []
    client = client_of(tmp_path, on_outcome=reported.extend)
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
    await until(lambda: len(reported) == 3)
    report = await client.aclose(0)
    assert isinstance(receipt.outcome, Kept)
    assert sorted(waiting(tmp_path)) == [4, *range(101, 106)]
    check_balance(report.stats)


async def test_a_thread_that_a_defect_ends(
    emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a bug ends the spool's thread, the client stops sending and reports the error; another client can send."""
    emulator.fail_with("status", status=503, times=1000)
    changes: list[StateChange] = []
    client = client_of(tmp_path, emulator.url, on_state_change=changes.append)
    receipts = await client.track_many(event(number) for number in range(1, 101))
    await until(lambda: client.stats().requests)
    with defective_spool_threads(monkeypatch):
        await until(lambda: client.stats().state == "halted")
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


class StuckFile(SpoolFile):
    """A spool file that cannot write outcomes."""

    def __init__(self, directory: Path, shop: str | None) -> None:
        super().__init__(directory, shop=shop)

    def settle(self, settlement: Settlement, now: float) -> None:
        """Raise an error."""
        raise SpoolError("no room for outcomes")


async def test_an_outcome_that_could_not_be_written(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If outcomes of delivered events cannot be written, the events end as `Kept(maybe_recorded=True)`."""
    spool = spool_with(tmp_path, StuckFile)(full_timeout=0.5)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    receipts = await client.track_many(event(number) for number in range(1, 4))
    await until(lambda: len(emulator.events()) == 3)
    async with asyncio.timeout(20):
        report = await client.aclose(0.1)
    assert [receipt.outcome.maybe_recorded for receipt in receipts] == [True] * 3  # type: ignore[union-attr]
    assert {type(receipt.outcome) for receipt in receipts} == {Kept}
    check_balance(report.stats)
    await spool_thread_ended(client)


async def test_what_another_process_may_have_sent_is_kept_as_such(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a client closes while another client sends its events, these events end as `Kept(maybe_recorded=True)`."""
    emulator.fail_with("stall", times=100, seconds=60)
    async with client_of(tmp_path, emulator.url) as one:
        await until(lambda: one.stats().spool.sends)  # type: ignore[union-attr]
        two = client_of(tmp_path, emulator.url)
        receipts = await two.track_many(event(number) for number in range(1, 4))
        await until(lambda: one.stats().requests)
        await two.aclose(0)
        assert [receipt.outcome for receipt in receipts] == [Kept(maybe_recorded=True)] * 3
        await one.aclose(0)
