"""The log of outcomes removes its old entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.spools import (
    add,
    numbered,
    settle,
)

if TYPE_CHECKING:
    from retailrocket_async._spool.file import SpoolFile


def test_the_log_forgets(file: SpoolFile) -> None:
    """If an entry is older than ten minutes, it is removed when the next outcome is written."""
    add(file, numbered(3))
    settle(file, [1], at=1000.0)
    settle(file, [2], at=1700.0)
    settle(file, [3], at=1710.0)
    assert [entry.ids for entry in file.log.after(0)] == [[(2, 2)], [(3, 3)]]
