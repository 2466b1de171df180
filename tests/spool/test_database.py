"""The database of a spool: its transactions, its maximum size, and its use by several processes at the same time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    Delivered,
)
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.failures import SpoolFileFullError
from retailrocket_async._spool.file import Settlement, SpoolFile
from tests.support.fakes import event
from tests.support.spools import (
    DELIVERED,
    add,
    client_of,
    numbered,
    numbers,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


def test_a_transaction_is_all_or_nothing(file: SpoolFile) -> None:
    """If code inside a transaction raises, the file is as it was before the transaction."""
    add(file, numbered(2))
    with pytest.raises(ZeroDivisionError), file.transaction():  # noqa: PT012 - the block changes the file before it raises
        file.events.append(numbered(5), 1.0)
        file.settle(Settlement([(1, 1)], DELIVERED), 1.0)
        raise ZeroDivisionError
    assert file.events.read(0, 10, 1 << 20).ids == [1, 2]
    assert file.log.after(0) == []


def test_sqlite_keeps_the_bound(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """A file stays below `max_bytes`; events in a full file can be settled, and new events are accepted afterwards."""
    file = make(max_bytes=1 << 20)
    file.open()
    written = 0
    with pytest.raises(SpoolFileFullError):  # noqa: PT012 - one of the calls raises
        while True:
            written = add(file, numbered(500))
    assert (tmp_path / "s" / DATABASE).stat().st_size <= (2 << 20) + 4096
    settle(file, list(range(1, written + 1)))
    assert add(file, numbered(500)) > written
    file.close()
    with closing(sqlite3.connect(tmp_path / "s" / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_many_open_at_once(make: Callable[..., SpoolFile]) -> None:
    """If twenty connections open a new spool at the same time, all of them succeed and can write."""
    failures: list[Exception] = []
    files = [make(shop="one") for _ in range(20)]
    barrier = threading.Barrier(len(files))

    def open_and_write(file: SpoolFile) -> None:
        try:
            barrier.wait()
            file.open()
            add(file, numbered(1))
        except Exception as error:  # noqa: BLE001 - reported by the assertion
            failures.append(error)

    threads = [threading.Thread(target=open_and_write, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files[0].events.read(0, 100, 1 << 20).ids == list(range(1, 21))


async def test_a_lock_file_that_is_removed(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a lock file is removed, a new lock file is made, and two processes never hold the same lock."""
    async with client_of(tmp_path, emulator.url) as client:
        await (await client.track(event(1)))
        (tmp_path / "spool" / "write.lock").unlink()
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tracking = asyncio.create_task(client.track(event(2)))
            done, _ = await asyncio.wait({tracking}, timeout=0.3)
            assert not done
        assert isinstance(await (await tracking), Delivered)
        (tmp_path / "spool" / "drain.lock").unlink()
        assert isinstance(await (await client.track(event(3))), Delivered)
        other.close()
    assert numbers(emulator) == [1, 2, 3]
