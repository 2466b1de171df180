"""The window limits how many events of the spool the engine has, and decides when the next events are read."""

from __future__ import annotations

import pytest

from retailrocket_async._spool.window import READ_EVENTS, Window


def test_room_is_used_and_returned() -> None:
    """Added events take room in the window, and removed events free their room again."""
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
    """The next read is limited to the room that is left in the window, but asks for at least one byte."""
    window = Window(2000, 2 << 20)
    window.add(events, size)

    assert expected == window.next_read()


def test_a_full_window_by_bytes_is_not_worth_reading() -> None:
    """If the window has no bytes left, nothing is read, even if there is room for more events by number."""
    window = Window(2000, 1000)
    window.add(1, 1000)

    assert not window.is_worth_reading()
