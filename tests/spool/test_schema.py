"""Opening the database: migrations, the shop that owns the spool, and damaged pages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    SpoolError,
)
from retailrocket_async._spool.directory import DATABASE
from tests.support.fakes import event
from tests.support.spools import (
    add,
    client_of,
    database_with,
    flip,
    numbered,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async.emulator import RunningEmulator


def test_another_shop_is_refused(make: Callable[..., SpoolFile]) -> None:
    """If one shop has used a spool, opening the spool for another shop raises an error."""
    first = make(shop="one")
    first.open()
    first.close()
    with pytest.raises(SpoolError, match="belongs to partner_id 'one'"):
        make(shop="two").open()
    again = make(shop="one")
    again.open()
    assert again.shop() == "one"


def test_a_newer_schema_is_refused(file: SpoolFile, tmp_path: Path) -> None:
    """If a newer version of the package has written the file, opening the spool raises an error."""
    file.close()
    with closing(sqlite3.connect(tmp_path / "spool" / DATABASE)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(SpoolError, match="newer version"):
        file.open()


def test_a_migration_that_was_cut_off_is_done_again(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """If a crash has left a database without tables, opening the spool creates the tables."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / DATABASE).touch(mode=0o600)
    file = make()
    file.open()
    assert add(file, numbered(1)) == 1


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """If the file is no database, opening the spool raises an error that says that the file is damaged."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / DATABASE).write_bytes(b"not a database, though long enough for a header" * 100)
    with pytest.raises(SpoolError, match="damaged"):
        make().open()


async def test_a_damaged_page_is_found_when_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a page is damaged, opening raises an error that names the command that saves the other events."""
    database = database_with(tmp_path, 3000)
    # This byte is in the header of a page with events, among the positions of the page's rows.
    flip(database, 40 * 4096 + 9, 0xFF)
    client = client_of(tmp_path)
    with pytest.raises(SpoolError, match=r"damaged.*spool export"):
        await client.__aenter__()
    with pytest.raises(SpoolError, match="damaged"):
        await client.track(event(1))
    assert "damaged" in str(client.stats().spool.failure)  # type: ignore[union-attr]
    assert sum("damaged" in record.getMessage() for record in caplog.records) == 1
    await client.aclose(0)


async def test_a_page_that_is_damaged_later(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a page is damaged while the spool is open, the damage is reported, and no more events are accepted."""
    database = database_with(tmp_path, 30_000)
    emulator.fail_with("stall", times=1, seconds=1.0)
    client = client_of(tmp_path, emulator.url)
    await client.track(event(1))
    for page in range(20, database.stat().st_size // 4096, 3):
        flip(database, page * 4096 + 9, 0xFF)
    await until(lambda: "damaged" in str(client.stats().spool.failure))  # type: ignore[union-attr]
    with pytest.raises(SpoolError, match=r"damaged.*spool export"):  # noqa: PT012 - one of the calls raises
        while True:
            await client.track(event(1))
    await client.aclose(0)
