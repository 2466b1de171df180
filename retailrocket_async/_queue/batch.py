"""A batch: the events of one request, with their bytes and receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from retailrocket_async._receipt import Receipt


class Batch:
    """Holds the events of one request: their JSON, their receipts and, if the buffer has `max_age`, their times.

    Attributes:
        alone: whether the batch is a single event that must be sent to the event's own endpoint.
        envelopes: the JSON of each event, in order.
        receipts: the receipt of each event.
        times: when each event was tracked (seconds on the buffer's clock); empty without `Buffer.max_age`.
        size: number of bytes of the request body with these events.
        opened_at: when the batch was opened for its first event (seconds on the buffer's clock). An event that had to
            wait for space may have been tracked earlier.
        opened_in: the generations of all runs in the batch (see `Run`), each once per run; empty for a part of a batch.
        attempts: number of requests with these events before the batch was divided.
        maybe_recorded: whether the API may have recorded one of these requests.
    """

    __slots__ = (
        "alone",
        "attempts",
        "envelopes",
        "maybe_recorded",
        "opened_at",
        "opened_in",
        "receipts",
        "size",
        "times",
    )

    def __init__(self, opened_at: float) -> None:
        self.envelopes: list[bytes] = []
        self.receipts: list[Receipt] = []
        self.times: list[float] = []
        self.size = 1
        self.opened_at = opened_at
        self.opened_in: list[int] = []
        self.alone = False
        self.attempts = 0
        self.maybe_recorded = False

    def __len__(self) -> int:
        return len(self.receipts)

    def __iter__(self) -> Iterator[tuple[bytes, Receipt]]:
        return zip(self.envelopes, self.receipts, strict=True)

    def join_end(self, other: Batch) -> None:
        """Append the events and generations of `other`."""
        self.envelopes += other.envelopes
        self.receipts += other.receipts
        self.times += other.times
        self.size += other.size - 1
        self.opened_at = min(self.opened_at, other.opened_at)
        self.opened_in += other.opened_in

    def part(self, start: int, stop: int) -> Batch:
        """Return a new batch with the events from `start` to before `stop`; its `opened_in` is empty."""
        part = Batch(self.opened_at)
        part.envelopes = self.envelopes[start:stop]
        part.receipts = self.receipts[start:stop]
        part.times = self.times[start:stop]
        part.size = 1 + sum(map(len, part.envelopes)) + len(part.envelopes)
        part.alone = self.alone
        part.attempts, part.maybe_recorded = self.attempts, self.maybe_recorded
        return part

    def cut_head(self, count: int) -> Batch:
        """Remove the first `count` events and return them as a batch of the kind that `part` returns."""
        head = self.part(0, count)
        del self.envelopes[:count], self.receipts[:count], self.times[:count]
        self.size -= head.size - 1
        return head

    def pop(self, position: int) -> Batch:
        """Remove the event at `position` and return it as a batch of the kind that `part` returns."""
        alone = self.part(position, position + 1)
        del self.envelopes[position], self.receipts[position], self.times[position : position + 1]
        self.size -= alone.size - 1
        return alone

    def parted(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """Return two batches of the kind that `part` returns: the events at `positions`, and all other events."""
        chosen = set(positions)
        halves = self.part(0, 0), self.part(0, 0)
        for position, (envelope, receipt) in enumerate(self):
            half = halves[position not in chosen]
            half.envelopes.append(envelope)
            half.receipts.append(receipt)
            half.times += self.times[position : position + 1]
            half.size += len(envelope) + 1
        return halves
