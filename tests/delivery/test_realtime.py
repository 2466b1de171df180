"""`Realtime` chooses between single events and batches: its transitions and thresholds; and it does not oscillate."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async import Batching, ConfigurationError
from retailrocket_async._delivery.realtime import (
    FIRST_DWELL,
    LONGEST_DWELL,
    SCARCE_VISITORS,
    SCARCE_WAIT,
    TRANSITIONS,
    Mode,
    Realtime,
    Signal,
)
from tests.support.effort import most

LOOKS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.02, 0.1, 1.0, 5.0, 100.0]),
        st.sampled_from([0.0, 0.4, 0.5, 3.0]),
        st.sampled_from([0, 1, 100, 101]),
    ),
    max_size=300,
)
"""For each look: the seconds since the previous look, the wait of the first ready event, and the ready visitors."""


@pytest.mark.parametrize(
    ("waited", "visitors", "singles"),
    [
        (0.0, 0, True),
        (SCARCE_WAIT - 0.01, SCARCE_VISITORS, True),
        (SCARCE_WAIT, 1, False),
        (0.0, SCARCE_VISITORS + 1, False),
    ],
)
def test_the_thresholds(waited: float, visitors: int, singles: bool) -> None:  # noqa: FBT001
    """If, and only if, an event has waited 0.5 s for its permit or more than 100 visitors wait, batches begin."""
    assert Realtime().look(0.0, waited=waited, visitors=visitors) is singles


def test_batches_end_after_the_dwell_time() -> None:
    """If permits were not scarce for the dwell time, single events return; scarce permits restart the dwell time."""
    realtime = Realtime()
    looks = [(0.0, SCARCE_WAIT), (1.9, 0.0), (1.95, SCARCE_WAIT), (3.9, 0.0), (3.96, 0.0)]

    assert [False] * 4 + [True] == [realtime.look(now, waited=waited, visitors=1) for now, waited in looks]


def test_the_dwell_time_doubles_and_is_reset() -> None:
    """If permits soon become scarce again, the dwell time doubles, up to its bound; otherwise, it is reset."""
    realtime, now = Realtime(), 0.0
    dwells: list[float] = []
    for singles_for in (1.0, 1.0, 1.0, 1.0, 31.0, 1.0, LONGEST_DWELL, 1.0):
        realtime.look(now, waited=SCARCE_WAIT, visitors=1)
        dwells.append(realtime.dwell)
        now += realtime.dwell
        assert realtime.look(now, waited=0.0, visitors=1)
        now += singles_for

    assert dwells == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0, 2.0]


@settings(max_examples=most(200))
@given(LOOKS)
def test_every_transition_is_in_the_table(looks: list[tuple[float, float, int]]) -> None:
    """Whatever `look` is called with, the mode changes only as `TRANSITIONS` says, and `look` returns the new mode."""
    realtime, now = Realtime(), 0.0
    for pause, waited, visitors in looks:
        now += pause
        before = realtime.mode
        singles = realtime.look(now, waited=waited, visitors=visitors)
        scarce = waited >= SCARCE_WAIT or visitors > SCARCE_VISITORS
        assert realtime.mode in TRANSITIONS[before].values()
        assert singles is (realtime.mode is Mode.SINGLES)
        assert not (scarce and singles)
        assert scarce or before is Mode.BATCHES or singles


@settings(max_examples=most(200))
@given(LOOKS)
def test_it_does_not_oscillate(looks: list[tuple[float, float, int]]) -> None:
    """Whatever `look` is called with, the mode changes at most twice in any 32 s, once the dwell time is 32 s."""
    realtime, now = Realtime(), 0.0
    began: list[float] = []
    for pause, waited, visitors in looks:
        now += pause
        before = realtime.mode
        if realtime.look(now, waited=waited, visitors=visitors) and before is Mode.BATCHES:
            began.append(now)
    # The dwell times are 2, 4, 8, 16 and then 32 s, unless single events were sent for 32 s.
    times = int(math.log2(LONGEST_DWELL / FIRST_DWELL))

    assert all(later - earlier >= FIRST_DWELL - 1e-9 for earlier, later in itertools.pairwise(began))
    assert all(later - earlier >= LONGEST_DWELL - 1e-9 for earlier, later in zip(began, began[times:], strict=False))


def test_every_signal_of_a_mode_has_a_next_mode() -> None:
    """`TRANSITIONS` has each mode and, for each mode, exactly the signals that are possible in this mode."""
    assert {mode: set(signals) for mode, signals in TRANSITIONS.items()} == {
        Mode.SINGLES: {Signal.SLACK, Signal.SCARCE},
        Mode.BATCHES: set(Signal),
    }


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_the_option_is_a_bool(value: object) -> None:
    """If `realtime` is not a bool, the error has the name of the field and the rule."""
    with pytest.raises(ConfigurationError, match=r"Batching\.realtime must be a bool, not"):
        Batching(realtime=value)  # type: ignore[arg-type]
