"""The window: it bounds the events that are with the engine, and says when reading more of them pays."""

from __future__ import annotations

import pytest

from retailrocket_async._spool.window import READ_EVENTS, Window


def test_room_is_used_and_returned() -> None:
    """Events take room while they are with the engine, and give it back when they have an outcome."""
    window = Window(10, 1000)
    window.add(8, 400)
    assert (window.fits(2), window.fits(3), window.is_worth_reading()) == (True, False, False)

    window.remove(3, 150)
    assert (window.fits(5), window.fits(6), window.is_worth_reading()) == (True, False, True)


@pytest.mark.parametrize(
    ("events", "size", "expected"),
    [
        (0, 0, (READ_EVENTS, 1 << 20)),
        (1800, 0, (200, 1 << 20)),
        (0, (2 << 20) - 10, (READ_EVENTS, 10)),
        (0, 3 << 20, (READ_EVENTS, 1)),
    ],
    ids=["empty", "few events left", "few bytes left", "no bytes left"],
)
def test_a_read_is_bounded(events: int, size: int, expected: tuple[int, int]) -> None:
    """A read asks for no more events and bytes than there is room for, and for one byte at least."""
    window = Window(2000, 2 << 20)
    window.add(events, size)

    assert expected == window.next_read()


def test_a_full_window_by_bytes_is_not_worth_reading() -> None:
    """If the bytes are used up, nothing is read, though there is room for more events."""
    window = Window(2000, 1000)
    window.add(1, 1000)

    assert not window.is_worth_reading()
