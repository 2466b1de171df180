"""A batch of whole runs that have left the buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._queue.batch import Batch

if TYPE_CHECKING:
    from retailrocket_async._queue.run import Run


class TakenBatch(Batch):
    """A batch of the events of one or more runs. The runs are stored because `EventBuffer.release` needs them later.

    Args:
        first: the first run.

    Attributes:
        runs: the runs, in order.
    """

    __slots__ = ("runs",)

    def __init__(self, first: Run) -> None:
        super().__init__(first.opened_at)
        self.runs: list[Run] = []
        self.alone = first.alone
        self.add(first)

    def add(self, run: Run) -> None:
        """Append the events of `run`. No event may be added to `run` afterwards."""
        self.envelopes += run.envelopes
        self.shares.append(run.share)
        self.times += run.times
        self.size += run.size - 1
        self.opened_at = min(self.opened_at, run.opened_at)
        self.opened_in.append(run.generation)
        self.runs.append(run)
