"""Tests of `Watermark`: it computes up to which offset of a Kafka partition all messages are settled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async.relay._kafka.watermark import Watermark

gaps = st.lists(st.integers(1, 3), max_size=30)


@given(start=st.integers(0, 10**12), gaps=gaps, data=st.data())
def test_commits_up_to_the_lowest_unsettled(start: int, gaps: list[int], data: st.DataObject) -> None:
    """In any order of settling, the watermark is the highest offset below which all messages are settled."""
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
    """If a reader starts at an earlier watermark, it reads all messages that were unsettled at the watermark's time."""
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
    """If a message is settled twice, or was never fetched, nothing changes; the watermark never falls."""
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


@given(count=st.integers(1, 60), data=st.data())
def test_what_is_settled_above_is_not_handed_out_again(count: int, data: st.DataObject) -> None:
    """If a reader continues from a watermark and its note of settled messages, it gets only the unsettled messages."""
    start = data.draw(st.integers(0, 10**9))
    watermark = Watermark(start)
    offsets = range(start, start + count)
    for offset in offsets:
        watermark.hand_out(offset)
    settled = data.draw(st.sets(st.sampled_from(offsets)))
    for offset in settled:
        watermark.settle(offset)
    begin, note = watermark.settled_below, watermark.note
    again = Watermark(begin, note)
    handed_out = [offset for offset in range(begin, start + count + 3) if again.hand_out(offset)]

    assert handed_out == [offset for offset in range(start, start + count + 3) if offset not in settled]
    assert again.settled_below == next(iter(handed_out))
    # The watermark and the note of the second reader are right as well.
    third = Watermark(again.settled_below, again.note)
    assert [offset for offset in range(begin, start + count + 3) if third.hand_out(offset)] == handed_out


def test_a_note_is_never_too_long() -> None:
    """If the note of settled messages would be too long for brokers, the highest ones are omitted and read again."""
    watermark = Watermark(0)
    for offset in range(10_000):
        watermark.hand_out(offset)
    for offset in range(1, 10_000, 2):
        watermark.settle(offset)
    note = watermark.note
    again = Watermark(0, note)
    handed_out = {offset for offset in range(10_000) if again.hand_out(offset)}

    assert 3_000 < len(note) < 4_096
    assert set(range(0, 10_000, 2)) <= handed_out
    assert len(handed_out) < 10_000


@given(
    st.one_of(st.text(), st.text().map("settled above: ".__add__), st.just("settled above: 1 x"), st.just("by hand"))
)
def test_foreign_notes_say_nothing_or_are_read(note: str) -> None:
    """If the note was written by another program, it is ignored without an error, and the first message is read."""
    assert Watermark(5, note).hand_out(5) or note.startswith("settled above: 0")


def test_what_is_left_out_is_committed() -> None:
    """Messages that the note lists as settled are not read again, and the higher watermark has to be committed."""
    watermark = Watermark(0, "settled above: 1 3")
    assert [watermark.hand_out(offset) for offset in range(4)] == [True, False, False, False]
    before = watermark.changes
    watermark.settle(0)

    assert watermark.settled_below == 4
    assert watermark.changes > before > watermark.committed


def test_nothing_handed_out() -> None:
    """If no message of a partition was fetched, there is nothing to commit."""
    watermark = Watermark(7)

    assert watermark.settled_below == watermark.position == 7
    assert watermark.changes == watermark.committed
    assert watermark.note == ""
    assert watermark.pending == 0


def test_the_note_says_what_may_have_been_sent() -> None:
    """If messages were recorded as about to be sent, the next reader knows which messages may have been sent."""
    watermark = Watermark(10)
    for offset in range(10, 16):
        watermark.hand_out(offset)
    watermark.record_sending(12)
    watermark.record_sending(11)
    watermark.settle(11)
    following = Watermark(watermark.settled_below, watermark.note)

    assert watermark.note == "sent below: 13; settled above: 1 1"
    assert following.maybe_sent_below == following.sent_below == 13
    assert [following.hand_out(offset) for offset in range(10, 16)] == [True, False, True, True, True, True]


def test_a_settled_message_leaves_no_mark() -> None:
    """If all messages that were recorded as about to be sent are settled, the note does not mention them."""
    watermark = Watermark(10)
    watermark.hand_out(10)
    watermark.hand_out(11)
    watermark.record_sending(10)
    watermark.settle(10)

    assert watermark.note == ""


@pytest.mark.parametrize("note", ["sent below: x; settled above: 0 1", "sent below: ", "sent below: -1; "])
def test_a_broken_mark(note: str) -> None:
    """If a note was not written by this class, it is read as if no message had been sent."""
    assert Watermark(10, note).maybe_sent_below == 0
