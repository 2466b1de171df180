"""`ProcessEvents`, the record of this process's events in a spool, agrees with a simple model of such a record."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Receipt, Rejected
from retailrocket_async._spool.id_ranges import ranges
from retailrocket_async._spool.process_events import ProcessEvents
from tests.support.effort import most
from tests.support.receipts import receipts_with_one_fate

OUTCOMES: list[Any] = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="retries_exhausted", maybe_recorded=True),
    Dropped(reason="overflow"),
]


class ProcessEventsMachine(RuleBasedStateMachine):
    """Adds and settles events of two processes in any order; the model stores only some of the receipts."""

    @initialize()
    def begin(self) -> None:
        """Start without events."""
        self.events = ProcessEvents()
        self.next = 1
        self.open: dict[int, Receipt | None] = {}
        self.others: set[int] = set()
        self.ended: list[tuple[Receipt, Any]] = []
        self.counts: dict[type, int] = {}

    @rule(count=st.integers(1, 30), keeps=st.booleans())
    def add(self, count: int, keeps: bool) -> None:  # noqa: FBT001 - Hypothesis passes the argument
        """Add a group of events of this process; the model stores their receipts if `keeps` is True."""
        receipts = receipts_with_one_fate(count)
        last = self.next + count - 1
        self.events.accepted(receipts, last)
        for number, receipt in enumerate(receipts, self.next):
            self.open[number] = receipt if keeps else None
        self.next = last + 1

    @rule(count=st.integers(1, 10))
    def add_others(self, count: int) -> None:
        """Let another process add events."""
        self.others |= set(range(self.next, self.next + count))
        self.next += count

    @precondition(lambda self: self.open or self.others)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def settle(self, data: st.DataObject, outcome: Any) -> None:
        """Settle some events of both processes."""
        some = sorted([*self.open, *self.others])
        ids = data.draw(st.lists(st.sampled_from(some), unique=True, min_size=1, max_size=40))
        self.events.settled(ranges(ids), outcome, "view")
        for number in ids:
            if number in self.open:
                self.counts[type(outcome)] = self.counts.get(type(outcome), 0) + 1
                receipt = self.open.pop(number)
                if receipt is not None:
                    self.ended.append((receipt, outcome))
            self.others.discard(number)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Abandon events of this process that do not wait any more and whose outcomes are unknown."""
        waiting = data.draw(st.sets(st.sampled_from(sorted(self.open))))
        outcome = Abandoned(reason="untold", maybe_recorded=True)
        self.events.forget(waiting, outcome)
        for number in self.open.keys() - waiting:
            self.counts[Abandoned] = self.counts.get(Abandoned, 0) + 1
            receipt = self.open.pop(number)
            if receipt is not None:
                self.ended.append((receipt, outcome))

    @invariant()
    def counts_are_right(self) -> None:
        """All counts equal the counts of the model, and all stored receipts have the right outcomes."""
        events, counts = self.events, self.events.counts
        assert events.pending == len(self.open)
        assert events.tracked == events.pending + counts.total
        assert counts.delivered == self.counts.get(Delivered, 0)
        assert counts.abandoned == self.counts.get(Abandoned, 0)
        assert counts.rejected == self.counts.get(Rejected, 0)
        assert counts.dropped == self.counts.get(Dropped, 0) == counts.dropped_by.get("overflow", {}).get("view", 0)
        assert all(receipt.outcome == outcome for receipt, outcome in self.ended)
        assert not any(receipt.done() for receipt in self.open.values() if receipt is not None)
        spans = events.spans()
        assert all(any(first <= number <= last for first, last in spans) for number in self.open)

    def teardown(self) -> None:
        """Settle the events that are still open as `Kept`, and check the counter and the receipts."""
        self.events.keep(Kept())
        assert self.events.counts.kept == len(self.open)
        assert all(receipt.outcome == Kept() for receipt in self.open.values() if receipt is not None)


TestOwnEvents = ProcessEventsMachine.TestCase
TestOwnEvents.settings = settings(max_examples=most(60), stateful_step_count=most(25), deadline=None)


def test_memory_does_not_grow_with_the_backlog() -> None:
    """If no code holds the receipts of 100,000 events, the events are stored as fewer than 50 ranges of ids."""
    events = ProcessEvents()
    for group in range(1, 10_001):
        events.accepted(receipts_with_one_fate(10), group * 10)
    assert len(events.spans()) < 50
    assert events.pending == 100_000


def test_memory_does_not_grow_with_events_written_one_by_one() -> None:
    """If no code holds the receipts of events that share fates, but were written one by one, few ranges are stored."""
    events = ProcessEvents()
    for number in range(1, 2_001):
        if number % 20 == 1:
            receipts = receipts_with_one_fate(20)
        events.accepted([receipts.pop()], number)
    assert len(events.spans()) < 50
    assert events.pending == 2_000


async def test_a_flush_waits_for_what_was_there() -> None:
    """A flush returns when all events that were accepted before the flush have an outcome, and not earlier."""
    events = ProcessEvents()
    events.accepted(receipts_with_one_fate(10), 10)
    flushing = asyncio.ensure_future(events.flushed(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    events.accepted(receipts_with_one_fate(10), 20)
    events.settled([(11, 20)], OUTCOMES[0])
    events.settled([(2, 10)], OUTCOMES[0])
    await asyncio.sleep(0)
    assert not flushing.done()
    events.settled([(1, 1)], OUTCOMES[1])
    await flushing
    await events.flushed(asyncio.get_running_loop().create_future())
