"""The reader of the outcome log gives this process's events their outcomes, whichever process has settled them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Delivered,
    SpoolError,
)
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async._spool.outcome_codec import encode_outcome
from tests.support.fakes import check_balance, event
from tests.support.spools import (
    DELIVERED,
    KEY,
    SHOP,
    client_of,
    failing_spool,
    numbered,
    until,
    writer_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from retailrocket_async._spool.event_table import EventTable
    from retailrocket_async._spool.outcome_log import LogEntry, OutcomeLog
    from retailrocket_async.emulator import RunningEmulator


async def test_outcomes_that_the_log_lost(tmp_path: Path) -> None:
    """If the outcome of an event was removed from the log, the event is `Abandoned`; events in the spool still wait."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()
    async with client_of(tmp_path) as client:
        receipts = await client.track_many(event(number) for number in range(1, 11))
        flushing = asyncio.create_task(client.flush())
        await asyncio.sleep(0)
        with other.transaction():
            other.settle(Settlement([(1, 3)], encode_outcome(Delivered(status=200))), 1.0)
            other.settle(Settlement([(4, 4)], encode_outcome(Delivered(status=201))), 1e10)
            other.settle(Settlement([(5, 5)], encode_outcome(Delivered(status=202))), 1.1e10)
        await until(receipts[4].done)
        await until(receipts[0].done)
        assert [receipt.outcome for receipt in receipts[:3]] == [
            Abandoned(reason="untold", maybe_recorded=True, attempts=0)
        ] * 3
        assert receipts[4].outcome == Delivered(status=202)
        assert not any(receipt.done() for receipt in receipts[5:])
        check_balance(client.stats())
        with other.transaction():
            other.settle(Settlement([(6, 10)], encode_outcome(Delivered(status=200))), 1.1e10)
        await flushing
        other.close()


class Reports:
    """A writer's listener that stores the ids that are reported as settled, and counts failures."""

    def __init__(self) -> None:
        self.settled_ids: list[int] = []
        self.failures = 0

    def settled(self, log: Sequence[LogEntry]) -> None:
        """Store the ids of these log entries."""
        self.settled_ids += [number for entry in log for first, last in entry.ids for number in range(first, last + 1)]

    def failed(self, error: SpoolError) -> None:
        """Count a failure."""
        self.failures += 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class HalfReadLog:
    """A log of outcomes of which only the first entry can be read; reading a later entry raises an error."""

    part = 1

    def __init__(self, log: OutcomeLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def after(self, seq: int) -> list[LogEntry]:
        """Return the first entry, or raise if `seq` is not 0."""
        if seq:
            raise SpoolError("the log cannot be read")
        return self._log.after(seq)[:1]


async def test_a_settlement_is_reported_or_pending(tmp_path: Path) -> None:
    """If reading the log fails after its first entry, a settlement is reported or left to the close, but not both."""
    file, reports = SpoolFile(tmp_path / "spool"), Reports()
    file.log = HalfReadLog(file.log)  # type: ignore[assignment]
    writer = writer_of(file, reports)
    writer.start()
    await writer.submit(lambda opened: opened.events.append(numbered(3), 1.0))
    writer.settle(Settlement([(1, 3)], DELIVERED))
    await until(lambda: reports.failures)
    await writer.stop()
    writer.join()

    pending = [span for settlement, _ in writer.pop_unsettled() for span in settlement.ids]
    assert ([], [(1, 3)]) == (reports.settled_ids, pending)


class ForgetfulTable:
    """A table of events whose method `waiting_between` raises at its first three calls."""

    def __init__(self, table: EventTable) -> None:
        self._table = table
        self._failures = iter(range(3))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def waiting_between(self, first: int, last: int) -> list[int]:
        """Raise at the first three calls; call the method of the real table afterwards."""
        if next(self._failures, None) is not None:
            raise OSError
        return self._table.waiting_between(first, last)


async def test_the_log_is_read_once_more_after_a_failure(tmp_path: Path) -> None:
    """If reading the missing outcomes fails, the client reads them again, and every receipt gets an outcome."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()

    file = SpoolFile(tmp_path / "spool", shop=SHOP)
    file.events = ForgetfulTable(file.events)  # type: ignore[assignment]
    spool = failing_spool(tmp_path, file)
    client = AsyncTrackingClient(KEY, SHOP, base_url="http://127.0.0.1:9/", spool=spool)
    receipts = await client.track_many(event(number) for number in range(1, 4))
    with other.transaction():
        other.settle(Settlement([(1, 1)], "forgotten"), 1.0)
        other.settle(Settlement([(2, 2)], '["Delivered",{"status":200},""]'), 1e10)
    async with asyncio.timeout(30):
        assert [getattr(await each, "reason", "delivered") for each in receipts[:2]] == ["untold", "delivered"]
    other.close()
    await client.aclose(0)


async def test_a_damaged_log_stops_nobody(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the outcome of an event in the log is damaged, this event is `Abandoned`; other events get their outcomes."""
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
