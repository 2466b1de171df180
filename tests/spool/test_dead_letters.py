"""Dead letters of a spool: their content, their limits, and how they are replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.spools import (
    add,
    numbered,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._spool.file import SpoolFile


def test_dead_letters(file: SpoolFile) -> None:
    """A dead letter stores its event's JSON, a reason and a time; a replay makes it a waiting event with a new id."""
    bodies = numbered(3)
    add(file, bodies, at=5.0)
    settle(file, [2], dead="rejected: HTTP 400", at=9.0)
    dead = file.dead.read(0, 10)
    assert dead == ([2], [5.0], [9.0], ["rejected: HTTP 400"], [False], [bodies[1]])
    assert (file.events.count(), file.dead.counts()) == (2, {"rejected: HTTP 400": 1})
    with file.transaction():
        assert file.dead.replay(10, 20.0) == 1
    assert file.events.read(3, 10, 1 << 20) == ([4], [20.0], [bodies[1]])
    assert file.dead.read(0, 10).ids == []


def test_dead_letters_are_bounded(make: Callable[..., SpoolFile]) -> None:
    """If there are more than `most_dead` dead letters, or some are older than `dead_age`, the oldest are removed."""
    file = make(most_dead=3, dead_age=100.0)
    file.open()
    add(file, numbered(10))
    for number in range(1, 6):
        settle(file, [number], dead="rejected", at=float(number))
    assert file.dead.read(0, 10).ids == [3, 4, 5]
    settle(file, [6], dead="rejected", at=104.5)
    assert file.dead.read(0, 10).ids == [5, 6]
