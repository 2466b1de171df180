"""What a process remembers of its events in a spool, against a model that remembers each of them."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Rejected
from retailrocket_async._spool.id_ranges import ranges
from retailrocket_async._spool.process_events import ProcessEvents, SpoolReceipt
from tests.support.effort import most

OUTCOMES: list[Any] = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="retries_exhausted", maybe_recorded=True),
    Dropped(reason="overflow"),
]


class OwnEventsMachine(RuleBasedStateMachine):
    """Adds and settles events in all orders, others' events among them; some receipts are kept, some are not."""

    @initialize()
    def begin(self) -> None:
        """Begin with nothing."""
        self.own = ProcessEvents()
        self.next = 1
        self.open: dict[int, SpoolReceipt | None] = {}
        self.others: set[int] = set()
        self.ended: list[tuple[SpoolReceipt, Any]] = []
        self.counts: dict[type, int] = {}

    @rule(count=st.integers(1, 30), keeps=st.booleans())
    def add(self, count: int, keeps: bool) -> None:  # noqa: FBT001 - as Hypothesis calls it
        """Add a group of own events."""
        receipts = [SpoolReceipt("view") for _ in range(count)]
        last = self.next + count - 1
        self.own.accepted(receipts, last)
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
        """Settle some events, own and others'."""
        some = sorted([*self.open, *self.others])
        ids = data.draw(st.lists(st.sampled_from(some), unique=True, min_size=1, max_size=40))
        self.own.settled(ranges(ids), outcome, "view")
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
        """Let some own events have outcomes that nobody tells."""
        waiting = data.draw(st.sets(st.sampled_from(sorted(self.open))))
        outcome = Abandoned(reason="untold", maybe_recorded=True)
        self.own.forget(waiting, outcome)
        for number in self.open.keys() - waiting:
            self.counts[Abandoned] = self.counts.get(Abandoned, 0) + 1
            receipt = self.open.pop(number)
            if receipt is not None:
                self.ended.append((receipt, outcome))

    @invariant()
    def counts_are_right(self) -> None:
        """Every count is that of the model, and kept receipts have their outcomes."""
        own, counts = self.own, self.own.counts
        assert own.pending == len(self.open)
        assert own.tracked == own.pending + counts.total
        assert counts.delivered == self.counts.get(Delivered, 0)
        assert counts.abandoned == self.counts.get(Abandoned, 0)
        assert counts.rejected == self.counts.get(Rejected, 0)
        assert counts.dropped == self.counts.get(Dropped, 0) == counts.dropped_by.get("overflow", {}).get("view", 0)
        assert all(receipt.outcome == outcome for receipt, outcome in self.ended)
        assert not any(receipt.done() for receipt in self.open.values() if receipt is not None)
        spans = own.spans()
        assert all(any(first <= number <= last for first, last in spans) for number in self.open)

    def teardown(self) -> None:
        """In the end what is left is kept."""
        self.own.keep(Kept())
        assert self.own.counts.kept == len(self.open)
        assert all(receipt.outcome == Kept() for receipt in self.open.values() if receipt is not None)


TestOwnEvents = OwnEventsMachine.TestCase
TestOwnEvents.settings = settings(max_examples=most(60), stateful_step_count=most(25), deadline=None)


def test_memory_does_not_grow_with_the_backlog() -> None:
    """A hundred thousand events whose receipts nobody keeps are remembered as a handful of runs."""
    own = ProcessEvents()
    for group in range(1, 10_001):
        own.accepted([SpoolReceipt("view") for _ in range(10)], group * 10)
    assert len(own.spans()) < 50
    assert own.pending == 100_000


async def test_a_flush_waits_for_what_was_there() -> None:
    """A flush is over when everything that was there at its beginning has its outcome, whatever came later."""
    own = ProcessEvents()
    own.accepted([SpoolReceipt("view") for _ in range(10)], 10)
    flushing = asyncio.ensure_future(own.flushed(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    own.accepted([SpoolReceipt("view") for _ in range(10)], 20)
    own.settled([(11, 20)], OUTCOMES[0])
    own.settled([(2, 10)], OUTCOMES[0])
    await asyncio.sleep(0)
    assert not flushing.done()
    own.settled([(1, 1)], OUTCOMES[1])
    await flushing
    await own.flushed(asyncio.get_running_loop().create_future())
