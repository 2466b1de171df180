"""`Watermark`: how far a partition may be committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async.relay._watermark import Watermark

gaps = st.lists(st.integers(1, 3), max_size=30)


@given(start=st.integers(0, 10**12), gaps=gaps, data=st.data())
def test_commits_up_to_the_lowest_unsettled(start: int, gaps: list[int], data: st.DataObject) -> None:
    """Whatever the order of settling, everything below the mark is settled, and the mark is as high as it can be."""
    watermark = Watermark(start)
    offset, unsettled, highest = start - 1, set[int](), start - 1
    for gap in gaps:
        if data.draw(st.booleans()) or not unsettled:
            offset = start if highest < start else highest + gap
            watermark.hand_out(offset)
            unsettled.add(offset)
            highest = offset
        else:
            settled = data.draw(st.sampled_from(sorted(unsettled)))
            watermark.settle(settled)
            unsettled.remove(settled)
        assert watermark.settled_below == min(unsettled, default=highest + 1)
        assert watermark.position == highest + 1
        assert watermark.pending == len(unsettled)
        assert all(watermark.is_open(one) for one in unsettled)


@given(count=st.integers(1, 30), data=st.data())
def test_whatever_is_read_again_covers_what_was_not_settled(count: int, data: st.DataObject) -> None:
    """A reader that begins at any mark there ever was reads everything that was not settled."""
    watermark = Watermark(0)
    for offset in range(count):
        watermark.hand_out(offset)
    settled: set[int] = set()
    for offset in data.draw(st.permutations(range(count))):
        assert set(range(count)) - settled <= set(range(watermark.settled_below, count))
        watermark.settle(offset)
        settled.add(offset)
    assert watermark.settled_below == count


@given(order=st.permutations(range(10)), again=st.lists(st.integers(0, 20)))
def test_settling_twice(order: list[int], again: list[int]) -> None:
    """To settle again, or what was never handed out, changes nothing, and the mark never falls."""
    watermark = Watermark(0)
    for offset in range(10):
        watermark.hand_out(offset)
    marks = [watermark.settled_below]
    for offset in order:
        watermark.settle(offset)
        marks.append(watermark.settled_below)
    for offset in again:
        watermark.settle(offset)
        marks.append(watermark.settled_below)

    assert marks == sorted(marks)
    assert marks[-1] == 10


def test_nothing_handed_out() -> None:
    """A partition of which nothing was handed out has nothing to commit."""
    watermark = Watermark(7)

    assert watermark.settled_below == watermark.committed == watermark.position == 7
    assert watermark.pending == 0
