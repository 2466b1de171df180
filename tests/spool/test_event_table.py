"""The table of waiting events: how events are read, and how damaged events are handled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async import (
    SqliteSpool,
)
from retailrocket_async._spool.file import SpoolFile
from tests.support.effort import most
from tests.support.fakes import CODEC
from tests.support.spools import (
    add,
    client_of,
    database_with,
    flip,
    numbered,
    numbers,
    settle,
    until,
    waiting,
)
from tests.support.strategies import events as any_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


@settings(max_examples=most(30), deadline=None)
@given(st.lists(any_events(), min_size=1, max_size=20))
def test_events_come_out_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, given_events: list) -> None:
    """Whatever fields an event has, the JSON that is read from the file equals the JSON that was written."""
    file = SpoolFile(tmp_path_factory.mktemp("spool") / "s")
    file.open()
    envelopes = [CODEC.encode(each) for each in given_events]
    last = add(file, envelopes)
    rows = file.events.read(0, 1000, 1 << 30)
    file.close()
    assert rows.bodies == envelopes
    assert rows.ids == list(range(last - len(envelopes) + 1, last + 1))


def test_reading_is_bounded(file: SpoolFile) -> None:
    """A read returns at most the requested numbers of events and bytes, but always at least one waiting event."""
    bodies = numbered(10)
    add(file, bodies)
    assert file.events.read(0, 3, 1 << 20).bodies == bodies[:3]
    assert file.events.read(0, 10, len(bodies[0]) + len(bodies[1])).bodies == bodies[:2]
    assert file.events.read(0, 10, 1).bodies == bodies[:1]
    assert file.events.read(3, 2, 1 << 20).ids == [4, 5]
    assert file.events.read(10, 2, 1 << 20) == ([], [], [])


def test_ids_are_never_used_again(file: SpoolFile) -> None:
    """If all events have been removed, the next event still gets a new id."""
    assert add(file, numbered(3)) == 3
    settle(file, [1, 2, 3])
    assert add(file, numbered(1)) == 4


def test_what_a_dead_process_may_have_sent_is_known(file: SpoolFile, make: Callable[..., SpoolFile]) -> None:
    """If a process has marked events up to an id as read, a process that opens the file later reads that id."""
    assert file.events.read_to() == 0
    with file.transaction():
        file.events.mark_read(7)
    file.close()
    later = make("spool")
    later.open()
    assert later.events.read_to() == 7


@pytest.mark.parametrize("before", [b'"productId":7', b'"view"'])
async def test_a_damaged_event_is_set_aside(
    emulator: RunningEmulator, tmp_path: Path, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """If the JSON of an event is damaged, the event becomes a dead letter, and all other events are delivered."""
    database = database_with(tmp_path, 20)
    content = database.read_bytes()
    flip(database, content.index(before, content.index(b'"productId":7') - 200) + 1, 0x80)
    async with client_of(tmp_path, emulator.url):
        await until(lambda: len(emulator.events()) == 19)
        await until(lambda: not waiting(tmp_path))
    [dead] = SqliteSpool(tmp_path / "spool").dead()
    assert dead.reason == "damaged"
    assert len(set(numbers(emulator))) == 19
    assert sum("damaged on disk" in record.getMessage() for record in caplog.records) == 1
