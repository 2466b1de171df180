"""A lane: the waiting batches of one visitor, of some visitors, or of all visitors."""

from __future__ import annotations

from collections import OrderedDict

from retailrocket_async._queue.batch import Batch


class Lane(OrderedDict[Batch, None]):
    """Holds the waiting batches of one lane, oldest first, and counts their events, so that every call is fast.

    Attributes:
        events: number of events in these batches.
        bytes: number of bytes of the JSON of these events.
    """

    __slots__ = ("_generation", "_newest", "bytes", "events")

    def __init__(self) -> None:
        super().__init__()
        self.events = self.bytes = 0
        # The last generation in which a batch was opened, and the number of batches of that generation.
        self._generation = self._newest = 0

    @property
    def first(self) -> Batch:
        """The oldest batch."""
        return next(iter(self))

    def open(self, batch: Batch) -> None:
        """Add a new batch at the end."""
        self[batch] = None
        if batch.generation != self._generation:
            self._generation, self._newest = batch.generation, 0
        self._newest += 1

    def remove(self, batch: Batch) -> None:
        """Remove a batch."""
        del self[batch]
        self.events -= len(batch)
        self.bytes -= batch.size - 1
        self._newest -= batch.generation == self._generation

    def urgent(self, generation: int) -> int:
        """Return the number of batches that were opened before `generation` began; a flush waits for these."""
        return len(self) - (self._newest if self._generation == generation else 0)
