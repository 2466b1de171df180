"""`Fate`: events of a group get outcomes together or one by one, and each receipt returns its event's outcome."""

from __future__ import annotations

import asyncio
import threading
import weakref

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._fate import Fate, marks_in, names_in, tags_in
from retailrocket_async._outcome import Delivered, Dropped, Outcome
from retailrocket_async._receipt import Receipt, share_of, single_receipt
from tests.support.fakes import turns
from tests.support.internals import waiters_of
from tests.support.receipts import receipts_with_one_fate, settle
from tests.support.strategies import PROPERTY

DELIVERED = Delivered(status=200)
DROPPED = Dropped(reason="overflow")

EVENTS = 8
SETTLEMENTS = st.lists(st.none() | st.lists(st.integers(0, EVENTS - 1), max_size=EVENTS), max_size=8)
"""Calls of `Fate.settle`: for each call the places of the events to settle, or None for all events."""


class Mark:
    """A value that an observer could return for an event; weak references to it are possible."""


@given(SETTLEMENTS)
@PROPERTY
def test_outcomes_are_those_of_single_events(settlements: list[list[int] | None]) -> None:
    """If events are settled in any groups, each receipt has the first outcome that was set for its event."""
    receipts = receipts_with_one_fate(EVENTS)
    model: dict[int, Outcome] = {}
    for number, places in enumerate(settlements, start=1):
        outcome = Delivered(status=200, attempts=number)
        share_of(receipts[0])[0].settle(outcome, places)
        for place in range(EVENTS) if places is None else places:
            model.setdefault(place, outcome)

        assert [model.get(place) for place in range(EVENTS)] == [receipt.outcome for receipt in receipts]
        assert [place in model for place in range(EVENTS)] == [receipt.done() for receipt in receipts]


@given(SETTLEMENTS, st.lists(st.integers(0, EVENTS - 1), max_size=20), st.sets(st.integers(0, 19), max_size=5))
@PROPERTY
def test_only_tasks_with_an_outcome_are_woken(
    settlements: list[list[int] | None], awaited: list[int], cancelled: set[int]
) -> None:
    """If events are settled in any groups, the tasks that await these events end, in order, and no other tasks end."""

    async def test() -> None:
        receipts = receipts_with_one_fate(EVENTS)
        ended: list[int] = []

        async def wait(number: int) -> None:
            outcome = await receipts[awaited[number]]
            assert outcome is receipts[awaited[number]].outcome
            ended.append(number)

        tasks = [asyncio.create_task(wait(number)) for number in range(len(awaited))]
        await turns()
        open_tasks = [number for number in range(len(awaited)) if number not in cancelled]
        for number in cancelled & {*range(len(awaited))}:
            tasks[number].cancel()
        await turns()
        expected: list[int] = []
        for places in settlements:
            share_of(receipts[0])[0].settle(DELIVERED, places)
            await turns()
            woken = [number for number in open_tasks if places is None or awaited[number] in places]
            expected += woken
            open_tasks = [number for number in open_tasks if number not in woken]
            assert expected == ended
        settle(receipts, DROPPED)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not waiters_of(receipts[0])

    asyncio.run(test())


def test_shares_have_names_marks_and_tags_in_order() -> None:
    """If a batch has events of several fates, `names_in`, `marks_in` and `tags_in` keep the order of the events."""
    one, other = Fate(["view", "order", "search"], [1, 2, 3]), Fate(["view", "view"])
    for place, mark in enumerate(["a", None, "c"]):
        one.mark(place, mark)
    shares = [(one, [2, 0]), (other, None), (one, [1])]

    assert ["search", "view", "view", "view", "order"] == names_in(shares)
    assert ["c", "a", None] == marks_in(shares)
    assert [3, 1, 2] == tags_in(shares)


def test_mark_is_kept_until_the_outcome() -> None:
    """If an event gets its outcome, alone or with all other events, its mark is freed although its receipt exists."""
    receipts = receipts_with_one_fate(3)
    marks = [Mark() for _ in receipts]
    alive = [weakref.ref(mark) for mark in marks]
    for receipt in receipts:
        receipt.mark = marks.pop(0)
    assert [receipt.mark for receipt in receipts] == [mark() for mark in alive]
    share_of(receipts[0])[0].settle(DROPPED, [1])
    after_one = [mark() is None for mark in alive]
    share_of(receipts[0])[0].settle(DELIVERED)
    receipts[2].mark = Mark()

    assert [False, True, False] == after_one
    assert [None] * 3 == [mark() for mark in alive] == [receipt.mark for receipt in receipts]


def test_thread_that_awaits_another_event_goes_on_waiting() -> None:
    """If one event of a fate is settled, a thread that awaits another event of the same fate still waits."""
    receipts = receipts_with_one_fate(2)
    waits = threading.Event()
    outcomes: list[Outcome] = []

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, waits.set)
        outcomes.append(await receipts[1])

    thread = threading.Thread(target=asyncio.run, args=(wait(),), daemon=True)
    thread.start()
    assert waits.wait(60.0)
    settle(receipts[:1], DROPPED)
    assert not outcomes
    settle(receipts[1:], DELIVERED)
    thread.join(60.0)

    assert [DELIVERED] == outcomes


def test_outcome_set_while_another_thread_reads_is_not_a_neighbours() -> None:
    """If events are settled while a thread reads one event's outcome, the thread gets no other event's outcome."""

    class Apart(dict[int, Outcome]):
        """Settles event 0 and then all other events at the moment when a reader looks up the outcome of one event."""

        def get(self, place: int, default: Outcome | None = None) -> Outcome | None:  # type: ignore[override]
            """Look up an outcome, then settle all events, and return what was found before."""
            found = super().get(place, default)
            fate._apart = {place: DROPPED}
            fate.settle(DELIVERED)
            return found

    fate = Fate(["view", "view"])
    fate._apart = Apart()
    during = Receipt(fate, 0).outcome

    assert (None, DROPPED) == (during, Receipt(fate, 0).outcome)


def test_single_receipt_shares_its_fate_with_none() -> None:
    """If a receipt was made by `single_receipt`, settling it settles no other receipt."""
    one, other = single_receipt("view"), single_receipt("order")
    settle([one], DROPPED)

    assert (DROPPED, None) == (one.outcome, other.outcome)
    assert ("view", "order") == (one.event_name, other.event_name)
