"""The file of a spool: how events are settled, how its usage is measured, and how it shrinks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._spool.directory import DATABASE
from tests.support.spools import (
    DELIVERED,
    add,
    numbered,
    settle,
)

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async._spool.file import SpoolFile


def test_what_is_settled_is_gone_and_logged(file: SpoolFile) -> None:
    """If events are settled, they are removed from the file, and the log has their ids with the outcome."""
    add(file, numbered(20))
    settle(file, [2, 3, 5])
    settle(file, [number for number in range(6, 21) if number % 2])
    assert file.events.read(0, 100, 1 << 20).ids == [1, 4, *range(6, 21, 2)]
    first, second = file.log.after(0)
    assert (first.ids, first.outcome) == ([(2, 3), (5, 5)], DELIVERED)
    assert len(second.ids) == 7
    assert file.log.after(first.seq) == [second]
    assert file.log.last() == second.seq


def test_what_is_settled_again_counts_once(file: SpoolFile) -> None:
    """If events are settled a second time, the new log entry names only the events that were still waiting."""
    add(file, numbered(12))
    settle(file, [1, 2])
    settle(file, [1, 2])
    settle(file, [2, 3, 4])
    settle(file, [number for number in range(1, 13) if number != 6])

    assert [entry.ids for entry in file.log.after(0)] == [[(1, 2)], [(3, 4)], [(5, 5), (7, 12)]]


def test_usage_does_not_count(file: SpoolFile) -> None:
    """`usage` returns the numbers of events and dead letters, the size in bytes, and the oldest event's time."""
    assert file.usage().oldest_at is None
    add(file, numbered(5), at=3.0)
    settle(file, [1, 2], dead="rejected")
    usage = file.usage()
    assert (usage.events, usage.dead, usage.oldest_at) == (3, 2, 3.0)
    assert usage.bytes == file.bytes_used() > 0


def test_the_file_shrinks(file: SpoolFile, tmp_path: Path) -> None:
    """If most events are removed, `shrink` returns their space to the file system."""
    last = add(file, numbered(20_000))
    settle(file, list(range(1, last + 1)))
    while file.shrink():
        pass
    file.close()
    assert (tmp_path / "spool" / DATABASE).stat().st_size < 1 << 20
