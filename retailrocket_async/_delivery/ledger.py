"""Counts every tracked event and its one outcome, and settles receipts.

``tracked == delivered + rejected + abandoned + dropped + kept + pending + in_flight`` holds after every method here.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from retailrocket_async._delivery.counts import OutcomeCounts
from retailrocket_async._delivery.flushes import Flushes
from retailrocket_async._delivery.hooks import Hooks
from retailrocket_async._errors import error_for
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Rejected
from retailrocket_async._queue.batch import Batch
from retailrocket_async._receipt import share_of
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._stats import Stats, UndeliveredEvent

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Hashable, Iterable, Sequence

    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._fate import Share
    from retailrocket_async._observer import Watch
    from retailrocket_async._outcome import DropReason, Outcome, Undelivered
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import State, StateChange

logger = logging.getLogger("retailrocket_async")

AT_ONCE: Final = 500
"""Number of events that are settled before other tasks may run; settling 500 events takes a millisecond or two."""

EACH: Final = 10
"""Fixed cost of settling a batch or a direct send, counted in events; the cost of each of its events is added."""


class Keeper(Protocol):
    """A spool, which stores the events of the engine, too."""

    def keep(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Write the outcome of a batch to the spool, and return the outcome that the events of the batch get.

        The two differ if the events stay in the spool, for example because the client was closed.
        """
        ...

    @property
    def undelivered(self) -> int:
        """Number of undelivered events in the spool. These events survive the end of the process."""
        ...


class Ledger:
    """Counts events and requests, settles receipts, and reports undelivered events.

    Attributes:
        hooks: calls the user's hooks.
        tracked: number of events tracked. `Intake.accept_now` adds to this number directly, because that method runs
            for every event and a call of `count_tracked` would cost time. All other code calls `count_tracked`.
        undelivered: the events that got another outcome than `Delivered` or `Kept` after `keep_undelivered` was called.
        quiet: True while the caller itself logs the events that the caller settles; the ledger then does not log them.

    Args:
        affinity: the loop that the client belongs to.
        on_outcome: the user's hook for undelivered events; None for no hook.
        on_state_change: the user's hook for changes of state; None for no hook.
        max_unreported: number of undelivered events that may wait for the hook.
        keeper: a spool that stores the events, too; called before a batch is settled. None without a spool.
        watch: called with the outcome of events; None without an observer.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        on_outcome: OutcomeHook | None,
        on_state_change: StateHook | None,
        *,
        max_unreported: int,
        keeper: Keeper | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._keeper = keeper
        self._watch = watch
        self.hooks = Hooks(affinity, on_outcome, on_state_change, most=max_unreported, failures=self)
        self._keeps = False
        self.quiet = False
        self._flushes = Flushes()
        self._logged: set[Hashable] = set()
        self.undelivered: list[UndeliveredEvent] = []
        self.tracked = 0
        self._requested = 0
        self._requests: Counter[int | str] = Counter()
        self._retries = 0
        self._splits = 0
        self._limiter_wait = 0.0
        self._counts = OutcomeCounts()
        self._hook_errors = 0

    # --- counting: these methods call no code of users ---

    def count_tracked(self, count: int = 1) -> None:
        """Count events as tracked."""
        self.tracked += count

    def count_request(self, *, part: bool) -> None:
        """Count a request that is about to be made.

        Args:
            part: whether the request carries a part of a batch that was divided.
        """
        self._requested += 1
        self._splits += part

    def uncount_request(self, *, part: bool) -> None:
        """Undo a call of `count_request`, because the request was not made after all."""
        self._requested -= 1
        self._splits -= part

    def count_reply(self, kind: int | str, *, retry: bool) -> None:
        """Count how a request ended.

        Args:
            kind: the HTTP status of the answer, or the name of the failure.
            retry: whether the request was a retry.
        """
        self._requests[kind] += 1
        self._retries += retry

    def count_limiter_wait(self, seconds: float) -> None:
        """Add seconds that a request has waited for its permit."""
        self._limiter_wait += seconds

    # --- settling ---

    def close_batch(self, batch: Batch, outcome: Outcome, *, notify: bool = True) -> None:
        """Settle the events of a batch; if `notify` is true, report undelivered events to the hook."""
        if self._keeper is not None:
            outcome = self._keeper.keep(batch, outcome)
        batch.settle(outcome)
        names = self._count(outcome, len(batch), batch.opened_in, batch.names)
        if notify and not isinstance(outcome, Delivered | Kept) and (self._keeps or self.hooks.wants_outcomes):
            self._report_undelivered(batch, outcome)
        # The observer does not run in the context of the current caller, because other callers tracked most events.
        detached(self._announce, outcome, len(batch), names)

    def drop(self, envelope: bytes, receipt: Receipt, reason: DropReason, *, notify: bool = True) -> None:
        """Drop an event that was never in the buffer; report the event to the hook if `notify` is true."""
        self.end(envelope, share_of(receipt), Dropped(reason=reason), notify=notify)

    def end(self, envelope: bytes, share: Share, outcome: Outcome, *, notify: bool = True) -> None:
        """Settle an event that was never in the buffer; report an undelivered event to the hook if `notify` is true."""
        batch = Batch(0.0)
        batch.envelopes, batch.shares = [envelope], [share]
        self.close_batch(batch, outcome, notify=notify)

    def close(self, outcome: Outcome, count: int, opened_in: Sequence[int], names: Iterable[str]) -> None:
        """Count events as settled, and log the first of each kind of failure.

        Args:
            outcome: the outcome of the events.
            count: number of events.
            opened_in: see `Batch.opened_in`.
            names: names of the events; read only if the events are dropped, or if there is an observer.
        """
        self._announce(outcome, count, self._count(outcome, count, opened_in, names))

    def _count(self, outcome: Outcome, count: int, opened_in: Sequence[int], names: Iterable[str]) -> Iterable[str]:
        """Count events as settled, also for the calls of `flush` that wait for them.

        Returns:
            The names of the events, which can still be iterated even if this method has read `names`.
        """
        if isinstance(outcome, Dropped):
            names = tuple(names)
        self._counts.add(outcome, count, names)
        if opened_in:
            for flush in self._flushes:
                flush.count_down(sum(generation <= flush.last for generation in opened_in))
        return names

    def _announce(self, outcome: Outcome, count: int, names: Iterable[str]) -> None:
        """Pass settled events to the observer and the log.

        The observer and the log's handlers are code of users, so all counters must be up to date before this call.
        """
        if self._watch is not None:
            self._watch.settled(names, outcome)
        # No record is logged for delivered and kept events, nor for events that the user's own `before_send` drops.
        match outcome:
            case Delivered() | Kept() | Dropped(reason="before_send"):
                return
            case Rejected(status=status):
                key: Hashable = ("rejected", status)
            case Abandoned(reason=reason, status=status):
                key = ("abandoned", reason, status)
            case Dropped(reason=reason):
                key = ("dropped", reason)
        if not self.quiet and key not in self._logged:
            level = logging.WARNING if isinstance(outcome, Dropped) else logging.ERROR
            self.log_once(key, level, "%d event(s): %s", count, error_for(outcome))

    def keep_undelivered(self) -> None:
        """From now on append undelivered events to `undelivered`."""
        self._keeps = True

    async def flushed(self, generation: int, count: int, finished: Future[None]) -> None:
        """Return when `count` groups of events (runs) of this or an earlier `generation` are settled; see `Run`."""
        await self._flushes.wait(generation, count, finished)

    def log_once(self, key: Hashable, level: int, message: str, *args: object) -> None:
        """Log a record, unless a record with the same key was logged before; `stats` counts the repetitions."""
        if key not in self._logged:
            self._logged.add(key)
            self._log(level, f"{message} (logged once; stats() counts on)", *args)

    def _log(self, level: int, message: str, *args: object) -> None:
        """Log a record; if one of the application's log handlers or filters raises, count a hook error."""
        if not write_log(logger, level, message, *args):
            self._hook_errors += 1

    def stats(self, buffer: EventBuffer, *, in_flight: int, waiting: int, state: State) -> Stats:
        """Return the counters of this ledger and of the buffer, with the numbers that other objects count."""
        return Stats(
            tracked=self.tracked,
            delivered=self._counts.delivered,
            rejected=self._counts.rejected,
            abandoned=self._counts.abandoned,
            dropped=self._counts.dropped,
            pending=buffer.events,
            pending_bytes=buffer.bytes,
            in_flight=in_flight,
            oldest_age=buffer.oldest_age(),
            waiting=waiting,
            requests=self._requested,
            requests_by_status=dict(self._requests),
            retries=self._retries,
            limiter_wait=self._limiter_wait,
            hook_errors=self._hook_errors,
            hook_missed=self.hooks.missed,
            state=state,
            dropped_by=self._counts.dropped_copy(),
            splits=self._splits,
            kept=self._counts.kept,
        )

    def _report_undelivered(self, batch: Batch, outcome: Undelivered) -> None:
        events = [
            UndeliveredEvent(event_name=name, envelope=envelope, outcome=outcome)
            for name, envelope in zip(batch.names, batch.envelopes, strict=True)
        ]
        if self._keeps:
            self.undelivered += events
        if self.hooks.wants_outcomes:
            missed = self.hooks.missed
            self.hooks.notify_outcomes(events)
            if missed != self.hooks.missed:
                self.log_once(("missed",), logging.ERROR, "on_outcome is too slow and misses events")

    def report_state(self, change: StateChange) -> None:
        """Report a change of state to the log and the hook."""
        level = logging.ERROR if change.state == "halted" else logging.WARNING
        cause = f"HTTP {change.status}" if change.status is not None else change.failure or ""
        if change.advice in cause:
            # The failure has the form "kind: advice". The advice is logged separately, so it is cut off here.
            cause = cause.partition(":")[0]
        self.hooks.notify_state(change)
        if change.state == "sending":
            self._log(level, "sending again, after %.1f s %s", change.lasted, change.previous)
        else:
            self._log(level, "sending is %s: %s (%s)", change.state, change.advice, cause)

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count an error of a hook, and log the first error of each hook."""
        self._hook_errors += 1
        self.log_once(
            ("hook", name), logging.ERROR, "%s raised %s; it goes on being called", name, type(error).__name__
        )
