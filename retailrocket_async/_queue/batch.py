"""A batch: the events of one request, with their JSON and the objects that get their outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._fate import names_in, places_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from retailrocket_async._fate import Share
    from retailrocket_async._outcome import Outcome


class Batch:
    """Holds the events of one request: their JSON, the objects that store their outcomes, and their times.

    Attributes:
        alone: whether the batch is a single event that must be sent to the event's own endpoint.
        envelopes: the JSON of each event, in order.
        shares: pairs of a `Fate`, which stores outcomes, and the places of events in this fate; in the same order.
        times: when each event was tracked (seconds on the buffer's clock); empty without `Buffer.max_age`.
        size: number of bytes of the request body with these events.
        opened_at: when the batch was opened for its first event (seconds on the buffer's clock). An event that had to
            wait for space may have been tracked earlier.
        opened_in: for each run in the batch, the number of flushes that had begun when the run was opened; empty for a
            part of a batch. A run is a group of events that leave the buffer together.
        attempts: number of requests with these events before the batch was divided.
        maybe_recorded: whether the API may have recorded the events of one of these requests.
    """

    __slots__ = (
        "alone",
        "attempts",
        "envelopes",
        "maybe_recorded",
        "opened_at",
        "opened_in",
        "shares",
        "size",
        "times",
    )

    def __init__(self, opened_at: float) -> None:
        self.envelopes: list[bytes] = []
        self.shares: list[Share] = []
        self.times: list[float] = []
        self.size: int = 1
        self.opened_at = opened_at
        self.opened_in: list[int] = []
        self.alone = False
        self.attempts = 0
        self.maybe_recorded = False

    def __len__(self) -> int:
        return len(self.envelopes)

    @property
    def names(self) -> list[str]:
        """The names of the events, in order."""
        return names_in(self.shares)

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome of the events, and wake the tasks that await their receipts."""
        for fate, places in self.shares:
            fate.settle(outcome, places)

    def join_end(self, other: Batch) -> None:
        """Append the events and the `opened_in` of `other`."""
        self.envelopes += other.envelopes
        self.shares += other.shares
        self.times += other.times
        self.size += other.size - 1
        self.opened_at = min(self.opened_at, other.opened_at)
        self.opened_in += other.opened_in

    def part(self, start: int, stop: int) -> Batch:
        """Return a new batch with the events from `start` to before `stop`; its `opened_in` is empty."""
        return self._chosen(range(start, stop))

    def parted(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """Return two new batches: the events at `positions`, and all other events. `opened_in` is empty in both."""
        chosen = set(positions)
        return self._chosen(sorted(chosen)), self._chosen([each for each in range(len(self)) if each not in chosen])

    def _chosen(self, positions: Iterable[int]) -> Batch:
        part = Batch(self.opened_at)
        part.alone = self.alone
        part.attempts, part.maybe_recorded = self.attempts, self.maybe_recorded
        events = [(share[0], place) for share in self.shares for place in places_of(share)]
        places: list[int] = []
        for position in positions:
            part.envelopes.append(self.envelopes[position])
            part.times += self.times[position : position + 1]
            fate, place = events[position]
            if not part.shares or part.shares[-1][0] is not fate:
                places = []
                part.shares.append((fate, places))
            places.append(place)
        part.size = 1 + sum(map(len, part.envelopes)) + len(part.envelopes)
        return part
