"""Jobs for the writer's thread: functions that read or change the file. New events are written without jobs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from retailrocket_async._spool.file import Settlement, SpoolFile


class Job:
    """A function that the writer's thread runs in a transaction, together with other jobs and unwritten events.

    Args:
        run: the function, called in the writer's thread; called again if the transaction fails.
        done: future that gets the result of `run`, in the loop. None if nobody waits for the result; the job is then
            tried again until the transaction succeeds.
        then: called with the result, in the writer's thread, once the transaction is in the file; None for no call.
        term: the lease term (see `GroupCommit.term`) in which the job is valid; in a later term the job is skipped.
            None if the job is always valid.

    Attributes:
        written: whether the transaction is in the file.
        reported: whether the event loop was notified of all log entries that the transaction wrote.
    """

    __slots__ = ("done", "reported", "run", "term", "then", "written")

    def __init__(
        self,
        run: Callable[[SpoolFile], Any],
        done: asyncio.Future[Any] | None = None,
        then: Callable[[Any], None] | None = None,
        *,
        term: int | None = None,
    ) -> None:
        self.run = run
        self.done = done
        self.then = then
        self.term = term
        self.written = self.reported = False


class PendingSettlements:
    """Holds settlements (outcomes of events) that were passed to the writer's thread and not read from the log yet."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Settlement, Job]] = deque()

    def add(self, settlement: Settlement, job: Job) -> None:
        """Add a settlement that `job` writes, and remove old settlements that were read from the outcome log."""
        while self._pending and self._pending[0][1].reported:
            self._pending.popleft()
        self._pending.append((settlement, job))

    def pop_all(self) -> list[tuple[Settlement, bool]]:
        """Remove and return the pending settlements, each with a flag that is True if the settlement is in the file."""
        left = [(settlement, job.written) for settlement, job in self._pending if not job.reported]
        self._pending.clear()
        return left
