"""Unwritten entries: events that the spool's thread has taken and has not written yet, with their arrival times."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._receipt import single_receipt
from retailrocket_async._spool.entries import Entry, UnwrittenEntries, size_of


def entry_of(body: bytes) -> Entry:
    """Return an entry whose caller does not wait for the disk."""
    return body, single_receipt("view"), None


@given(st.lists(st.binary(max_size=50)), st.integers(0, 2000))
def test_as_many_fit_as_there_is_room_for(bodies: list[bytes], room: int) -> None:
    """`fitting(room)` returns how many of the oldest entries fit into `room` bytes together."""
    unwritten = UnwrittenEntries()
    unwritten.entries += map(entry_of, bodies)
    fitting = unwritten.fitting(room)

    assert size_of(unwritten.entries[:fitting]) <= room or fitting == 0
    assert fitting == len(bodies) or size_of(unwritten.entries[: fitting + 1]) > room


@given(st.lists(st.integers(1, 5), max_size=6), st.data())
def test_removing_keeps_the_moments(groups: list[int], data: st.DataObject) -> None:
    """If some entries are removed, the remaining entries still have their arrival times."""
    unwritten = UnwrittenEntries()
    came: list[tuple[Entry, float]] = []
    for moment, count in enumerate(groups):
        entries = [entry_of(b"{}") for _ in range(count)]
        unwritten.entries += entries
        unwritten.stamp(float(moment))
        came += [(entry, float(moment)) for entry in entries]
    first = data.draw(st.integers(0, len(came)))
    gone = data.draw(st.sets(st.integers(first, len(came) - 1))) if first < len(came) else set()
    unwritten.remove_first(first)
    unwritten.discard(came[number][0] for number in gone)

    left = [each for number, each in enumerate(came) if number >= first and number not in gone]
    assert [entry for entry, _ in left] == unwritten.entries
    for moment in range(len(groups)):
        assert sum(at <= moment for _, at in left) == unwritten.older_than(float(moment))


async def test_withdrawn_entries_are_taken_out() -> None:
    """If callers are cancelled, their entries are removed, and all other entries stay."""
    loop = asyncio.get_running_loop()
    entries: list[Entry] = [(b"{}", single_receipt("view"), loop.create_future()) for _ in range(3)]
    unwritten = UnwrittenEntries()
    unwritten.entries += [*entries, entry_of(b"{}")]
    unwritten.stamp(1.0)
    for entry in entries[::2]:
        assert entry[2] is not None
        entry[2].cancel()

    assert entries[::2] == unwritten.pop_withdrawn()
    assert [entries[1]] == unwritten.entries[:1]
    assert (2, 2) == (len(unwritten), unwritten.older_than(1.0))
