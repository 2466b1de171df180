"""The sliding window that enforces the emulator's request limit; its methods get the time as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async.emulator import SlidingWindow


def admitted(moments: list[float], limit: int | None, per: float = 1.0) -> list[bool]:
    """Return whether a new window admits a request at each of *moments*."""
    window = SlidingWindow(per)
    return [window.admit(moment, limit) for moment in moments]


def test_the_limit_passes_and_the_next_does_not() -> None:
    """If more than `limit` requests arrive at the same time, exactly `limit` requests are admitted."""
    assert [True, True, True, False, False] == admitted([5.0] * 5, 3)


def test_the_window_is_open_at_its_old_end() -> None:
    """If a request arrives exactly `per` seconds after an admitted one, it is admitted; earlier, it is refused."""
    assert [True, False, True] == admitted([10.0, 10.99609375, 11.0], 1)


def test_the_window_slides() -> None:
    """If time passes, each admitted request leaves the window separately, not all at the turn of a second."""
    assert [True, True, False, True, False, True] == admitted([0.5, 0.75, 1.25, 1.5, 1.625, 1.75], 2)


def test_refused_requests_take_no_place() -> None:
    """If requests are refused, they do not count, so they do not delay the next admission."""
    assert [True, False, False, False, True] == admitted([0.0, 0.25, 0.5, 0.75, 1.0], 1)


def test_no_limit_admits_all() -> None:
    """If there is no limit, every request is admitted."""
    assert [True] * 1000 == admitted([0.0] * 1000, None)


def test_the_limit_may_change_between_requests() -> None:
    """If the limit changes, requests that were admitted before the change still count."""
    window = SlidingWindow(1.0)
    for _ in range(3):
        window.admit(0.0, None)

    assert (False, True) == (window.admit(0.5, 3), window.admit(0.5, 4))


def test_refusals_are_counted() -> None:
    """If requests are refused, `over_limit` is the number of refused requests."""
    window = SlidingWindow(1.0)
    for _ in range(5):
        window.admit(0.0, 2)

    assert 3 == window.over_limit


def test_the_worst_window_counts_all_arrivals() -> None:
    """If requests arrive, `worst` is the maximum number of requests in any window, whether admitted or not."""
    window = SlidingWindow(1.0)
    for moment in [0.0, 0.5, 0.75, 1.0, 1.25, 9.0]:
        window.arrive(moment)

    assert 4 == window.worst


def test_clearing_forgets_everything() -> None:
    """If the window is cleared, its counters are 0 and it admits requests as a new window does."""
    window = SlidingWindow(1.0)
    window.arrive(0.0)
    window.admit(0.0, 1)
    window.admit(0.0, 1)
    window.clear()

    assert (0, 0, True) == (window.worst, window.over_limit, window.admit(0.0, 1))


# Multiples of 1/64 are exact in binary, so the test and the window calculate the same numbers.
ticks = st.lists(st.integers(0, 400), max_size=80).map(lambda marks: [mark / 64 for mark in sorted(marks)])


@given(ticks, st.integers(1, 6))
def test_every_verdict_is_that_of_the_definition(moments: list[float], limit: int) -> None:
    """If a request arrives at t, it is refused exactly if `limit` admitted requests are in (t - per, t]."""
    passed: list[float] = []
    expected: list[bool] = []
    for moment in moments:
        free = sum(moment - 1.0 < other <= moment for other in passed) < limit
        expected.append(free)
        if free:
            passed.append(moment)

    assert expected == admitted(moments, limit)


@given(ticks)
def test_the_worst_window_is_that_of_the_definition(moments: list[float]) -> None:
    """If requests arrive, `worst` is the maximum number of arrivals in (t - per, t] over all t."""
    window = SlidingWindow(1.0)
    for moment in moments:
        window.arrive(moment)
    expected = max((sum(end - 1.0 < other <= end for other in moments) for end in moments), default=0)

    assert expected == window.worst
