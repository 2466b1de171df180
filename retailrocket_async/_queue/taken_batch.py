"""A batch that was taken from the buffer, and the runs that it consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._queue.batch import Batch

if TYPE_CHECKING:
    from retailrocket_async._queue.run import Run


class TakenBatch(Batch):
    """The events of one or more runs. `EventBuffer.release` needs the runs when the events have their outcome.

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
        """Append the events of a run."""
        self.join_end(run)
        self.runs.append(run)
