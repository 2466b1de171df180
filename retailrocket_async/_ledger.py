"""The books: every event tracked, and its one outcome.

``tracked == delivered + rejected + abandoned + dropped + pending + in_flight`` holds after every method here.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Rejected, error_for, settle
from retailrocket_async._report import Stats, UndeliveredEvent

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Hashable, Sequence

    from retailrocket_async._buffer import Batch, EventBuffer
    from retailrocket_async._outcome import Outcome, Undelivered

logger = logging.getLogger("retailrocket_async")


class Ledger:
    """Counts events and requests, settles receipts, and tells of what was not delivered.

    Args:
        on_outcome: the user's hook, given the undelivered events of each batch; None for nobody.

    Attributes:
        undelivered: the undelivered events since `keep_undelivered` was called.
    """

    def __init__(self, on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None) -> None:
        self._on_outcome = on_outcome
        self._keeps = False
        self._flushes: list[_Flush] = []
        self._told: set[Hashable] = set()
        self.undelivered: list[UndeliveredEvent] = []
        self.tracked = self.in_flight = 0
        self.requested = 0
        self.requests: Counter[int | str] = Counter()
        self.retries = 0
        self.limiter_wait = 0.0
        self._delivered = self._rejected = self._abandoned = self._dropped = 0
        self._hook_errors = 0

    def close_batch(self, batch: Batch, outcome: Outcome) -> None:
        """Give the events of a batch their outcome."""
        # Whoever waits comes first: a log handler or hook that raises must find everything settled.
        settle(batch.receipts, outcome)
        self.close(outcome, len(batch), batch.opened_in)
        if not isinstance(outcome, Delivered) and (self._keeps or self._on_outcome is not None):
            self._tell_undelivered(batch, outcome)

    def close(self, outcome: Outcome, count: int, opened_in: Sequence[int]) -> None:
        """Count `count` events as settled, and tell the first of each kind of failure.

        Args:
            outcome: what became of them.
            count: how many.
            opened_in: the generations of the batches that they were in.
        """
        key: Hashable
        match outcome:
            case Delivered():
                self._delivered += count
                key = None
            case Rejected(status=status):
                self._rejected += count
                key = ("rejected", status)
            case Abandoned(reason=reason, status=status):
                self._abandoned += count
                key = ("abandoned", reason, status)
            case Dropped(reason=reason):
                self._dropped += count
                key = ("dropped", reason)
        for flush in self._flushes:
            flush.count_down(opened_in)
        if not isinstance(outcome, Delivered):
            level = logging.WARNING if isinstance(outcome, Dropped) else logging.ERROR
            self.tell_once(key, level, "%d event(s): %s", count, error_for(outcome))

    def keep_undelivered(self) -> None:
        """From now on keep what is not delivered in `undelivered`."""
        self._keeps = True

    async def flushed(self, generation: int, count: int, finished: Future[None]) -> None:
        """Return when `count` batches and direct sends, all those open of `generation` and before, are settled."""
        flush = _Flush(generation, count, finished)
        self._flushes.append(flush)
        try:
            await finished
        finally:
            self._flushes.remove(flush)

    def tell_once(self, key: Hashable, level: int, message: str, *args: object) -> None:
        """Log the first of its kind; the rest shows in `stats`, and what carries events goes to `on_outcome`."""
        if key not in self._told:
            self._told.add(key)
            # A handler of the application's may raise, and must not stop the settling half way.
            with suppress(Exception):
                logger.log(level, f"{message} (logged once; stats() counts on)", *args)  # noqa: G004 - constants only

    def stats(self, buffer: EventBuffer, *, waiting: int) -> Stats:
        """Return a snapshot of the books and of the buffer."""
        return Stats(
            tracked=self.tracked,
            delivered=self._delivered,
            rejected=self._rejected,
            abandoned=self._abandoned,
            dropped=self._dropped,
            pending=buffer.events,
            pending_bytes=buffer.bytes,
            in_flight=self.in_flight,
            oldest_age=buffer.oldest_age(),
            waiting=waiting,
            requests=self.requested,
            requests_by_status=dict(self.requests),
            retries=self.retries,
            limiter_wait=self.limiter_wait,
            hook_errors=self._hook_errors,
        )

    def _tell_undelivered(self, batch: Batch, outcome: Undelivered) -> None:
        events = [
            UndeliveredEvent(event_name=receipt.event_name, envelope=envelope, outcome=outcome)
            for envelope, receipt in batch
        ]
        if self._keeps:
            self.undelivered += events
        if self._on_outcome is None:
            return
        try:
            self._on_outcome(events)
        except Exception as error:  # noqa: BLE001 - a user's hook must not stop the delivery
            self._hook_errors += 1
            self.tell_once(
                ("hook",), logging.ERROR, "on_outcome raised %s; it goes on being called", type(error).__name__
            )


class _Flush:
    """A caller that waits for `remaining` batches and direct sends of `generation` and before."""

    __slots__ = ("finished", "generation", "remaining")

    def __init__(self, generation: int, remaining: int, finished: Future[None]) -> None:
        self.generation = generation
        self.remaining = remaining
        self.finished = finished

    def count_down(self, opened_in: Sequence[int]) -> None:
        self.remaining -= sum(generation <= self.generation for generation in opened_in)
        if self.remaining <= 0 and not self.finished.done():
            self.finished.set_result(None)
