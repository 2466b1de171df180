"""Events that go, or may go, in one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator

    from retailrocket_async._receipt import Receipt


class Batch:
    """Events side by side: their envelopes, their receipts and, where the buffer asks for it, their times.

    Attributes:
        envelopes: the JSON of each event, in order.
        receipts: the receipt of each event.
        times: when each event came (seconds on the buffer's clock); empty where nobody asks.
        size: bytes of the request body that holds them.
        opened_at: when it was opened: the oldest event came then, or had waited for room.
        generation: how many flushes had begun when it was opened. It may grow on after the next one began: a flush
            waits for the batches that were open then, so that many flushes at once do not make many small batches.
        opened_in: the generations of all batches it was made of; empty for a part of one.
        lanes: keys of the lanes it was taken from; empty for a part.
        attempts: requests that carried it, before it was divided.
        maybe_recorded: whether one of those may have been recorded.
    """

    __slots__ = (
        "attempts",
        "envelopes",
        "generation",
        "lanes",
        "maybe_recorded",
        "opened_at",
        "opened_in",
        "receipts",
        "size",
        "times",
    )

    def __init__(self, opened_at: float, generation: int, lane: Hashable) -> None:
        self.envelopes: list[bytes] = []
        self.receipts: list[Receipt] = []
        self.times: list[float] = []
        self.size = 1
        self.opened_at = opened_at
        self.generation = generation
        self.opened_in: list[int] = [generation]
        self.lanes: list[Hashable] = [lane]
        self.attempts = 0
        self.maybe_recorded = False

    def __len__(self) -> int:
        return len(self.receipts)

    def __iter__(self) -> Iterator[tuple[bytes, Receipt]]:
        return zip(self.envelopes, self.receipts, strict=True)

    def absorb(self, other: Batch) -> None:
        """Take over the events of `other`, which follow those here, or are of other lanes."""
        self.envelopes += other.envelopes
        self.receipts += other.receipts
        self.times += other.times
        self.size += other.size - 1
        self.opened_at = min(self.opened_at, other.opened_at)
        self.opened_in += other.opened_in
        self.lanes += [lane for lane in other.lanes if lane not in self.lanes]

    def join_end(self, other: Batch) -> None:
        """Take over the events of `other` and its flushes, for one end together; no lane counts them."""
        self.envelopes += other.envelopes
        self.receipts += other.receipts
        self.times += other.times
        self.size += other.size - 1
        self.opened_in += other.opened_in

    def part(self, start: int, stop: int) -> Batch:
        """Return a copy of the events from `start` to before `stop`, that no lane and no flush counts."""
        part = Batch(self.opened_at, self.generation, None)
        part.opened_in, part.lanes = [], []
        part.envelopes = self.envelopes[start:stop]
        part.receipts = self.receipts[start:stop]
        part.times = self.times[start:stop]
        part.size = 1 + sum(map(len, part.envelopes)) + len(part.envelopes)
        part.attempts, part.maybe_recorded = self.attempts, self.maybe_recorded
        return part

    def cut_head(self, count: int) -> Batch:
        """Remove the first `count` events and return them, as `part` does."""
        head = self.part(0, count)
        del self.envelopes[:count], self.receipts[:count], self.times[:count]
        self.size -= head.size - 1
        return head

    def pop(self, position: int) -> Batch:
        """Remove the event at `position` and return it, as `part` does."""
        alone = self.part(position, position + 1)
        del self.envelopes[position], self.receipts[position], self.times[position : position + 1]
        self.size -= alone.size - 1
        return alone

    def parted(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """Return the events at `positions`, and the others, as `part` does."""
        chosen = set(positions)
        halves = self.part(0, 0), self.part(0, 0)
        for position, (envelope, receipt) in enumerate(self):
            half = halves[position not in chosen]
            half.envelopes.append(envelope)
            half.receipts.append(receipt)
            half.times += self.times[position : position + 1]
            half.size += len(envelope) + 1
        return halves
