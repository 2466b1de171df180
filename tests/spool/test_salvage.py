"""The function `salvaged` reads the events of a spool without SQLite, so it can also read a damaged file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async import CustomEvent
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.salvage import is_envelope, salvaged
from tests.support.fakes import CODEC
from tests.support.spools import add, flip, numbered, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async._spool.file import SpoolFile


def test_all_rows_are_read(file: SpoolFile, tmp_path: Path) -> None:
    """Waiting events and dead letters of any size are read from the write-ahead log; removed events are not."""
    large = [CODEC.encode(CustomEvent(name="large", fields={"text": "x" * size})) for size in (4000, 5000, 50_000)]
    add(file, [*numbered(200), *large])
    settle(file, range(1, 101))
    settle(file, [150], dead="rejected: HTTP 400")
    rows = list(salvaged(tmp_path / "spool"))

    assert sorted(file.events.read(0, 1000, 1 << 30).bodies) == sorted(row.envelope for row in rows if not row.dead)
    assert file.dead.read(0, 10).bodies == [row.envelope for row in rows if row.dead]


def test_the_database_is_read_without_a_log(make: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """If the write-ahead log is empty after a close, all events are read from the database in their order."""
    file = make("spool")
    file.open()
    add(file, numbered(1000))
    file.close()

    assert numbered(1000) == [row.envelope for row in salvaged(tmp_path / "spool")]


def test_a_damaged_text_is_a_row_without_an_envelope(make: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """If the JSON of an event is damaged, its row has no envelope, and all other events are read."""
    file = make("spool")
    file.open()
    add(file, numbered(100))
    file.close()
    database = tmp_path / "spool" / DATABASE
    flip(database, database.read_bytes().index(b'"productId":50') + 1, 0x80)
    rows = [row.envelope for row in salvaged(tmp_path / "spool")]

    expected: list[bytes | None] = [*numbered(100)]
    expected[49] = None
    assert expected == rows


@pytest.mark.parametrize(
    ("body", "expected"), [(b"{}", True), (b"[]", False), (b"", False), (b"{", False), (b"[" * 100_000, False)]
)
def test_an_envelope_is_an_object(body: bytes, expected: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """`is_envelope` returns True only for the JSON of an object; text that cannot be parsed raises no error."""
    assert is_envelope(body) is expected
