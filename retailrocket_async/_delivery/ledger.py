"""The books: every event tracked, and its one outcome.

``tracked == delivered + rejected + abandoned + dropped + kept + pending + in_flight`` holds after every method here.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

from retailrocket_async._delivery.hooks import Hooks
from retailrocket_async._errors import error_for
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Rejected
from retailrocket_async._queue.batch import Batch
from retailrocket_async._receipt import settle
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._stats import Stats, UndeliveredEvent

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._observer import Watch
    from retailrocket_async._outcome import DropReason, Outcome, Undelivered
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import State, StateChange

if TYPE_CHECKING:
    Keep: TypeAlias = Callable[[Batch, Outcome], Outcome]

logger = logging.getLogger("retailrocket_async")

AT_ONCE: Final = 500
"""What is ended before others may run, counted in events: a millisecond or two."""

_name_of = operator.attrgetter("event_name")

EACH: Final = 10
"""What a batch, or a direct send, costs beside its events, counted in events."""


class Ledger:
    """Counts events and requests, settles receipts, and tells of what was not delivered.

    Attributes:
        hooks: tells the user of what was not delivered.
        tracked: number of events tracked. Only `Intake.accept_now` adds to it from outside: that method runs for every
            event, and a call of `count_tracked` would be the 16th for an event, which 15 are enough for.
        undelivered: the undelivered events since `keep_undelivered` was called.
        quiet: whether what ends just now is not logged, as somebody else logs it.

    Args:
        affinity: the loop that the client belongs to.
        on_outcome: the user's hook for undelivered events; None for nobody.
        on_state_change: the user's hook for changes of state; None for nobody.
        most_told: undelivered events that may wait to be told of.
        keep: given what is to end, and how; returns how it ends. A spool may keep it. None for none.
        watch: told what became of events; None for nobody.
    """

    def __init__(  # noqa: PLR0913 - what the composition root fills in
        self,
        affinity: LoopAffinity,
        on_outcome: OutcomeHook | None,
        on_state_change: StateHook | None,
        *,
        most_told: int,
        keep: Keep | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._keep = keep
        self._watch = watch
        self.hooks = Hooks(affinity, on_outcome, on_state_change, most=most_told, failed=self.hook_failed)
        self._keeps = False
        self.quiet = False
        self._flushes: list[_Flush] = []
        self._told: set[Hashable] = set()
        self.undelivered: list[UndeliveredEvent] = []
        self.tracked = self._in_flight = 0
        self._requested = 0
        self._requests: Counter[int | str] = Counter()
        self._retries = 0
        self._splits = 0
        self._limiter_wait = 0.0
        self._delivered = self._rejected = self._abandoned = self._dropped = self._kept = 0
        self._dropped_by: dict[str, dict[str, int]] = {}
        self._hook_errors = 0

    # --- counting: nothing here calls other code ---

    @property
    def in_flight(self) -> int:
        """Number of events in flight."""
        return self._in_flight

    def count_tracked(self, count: int = 1) -> None:
        """Count events as tracked."""
        self.tracked += count

    def count_launched(self, count: int) -> None:
        """Count events as in flight."""
        self._in_flight += count

    def count_landed(self, count: int) -> None:
        """Count events as no longer in flight; the caller settles them in the same step."""
        self._in_flight -= count

    def count_request(self, *, part: bool) -> None:
        """Count a request that is about to be made.

        Args:
            part: whether it carries a part of a batch that was divided.
        """
        self._requested += 1
        self._splits += part

    def uncount_request(self, *, part: bool) -> None:
        """Take back `count_request`: the request was not made after all."""
        self._requested -= 1
        self._splits -= part

    def count_reply(self, kind: int | str, *, retry: bool) -> None:
        """Count how a request ended.

        Args:
            kind: its HTTP status, or the name of its failure.
            retry: whether it was a further attempt of its flight.
        """
        self._requests[kind] += 1
        self._retries += retry

    def count_limiter_wait(self, seconds: float) -> None:
        """Add seconds that a request has waited for its permit."""
        self._limiter_wait += seconds

    # --- settling ---

    def close_batch(self, batch: Batch, outcome: Outcome, *, tell: bool = True) -> None:
        """Give the events of a batch their outcome, and tell of them where they are undelivered."""
        if self._keep is not None:
            outcome = self._keep(batch, outcome)
        settle(batch.receipts, outcome)
        names = self._count(outcome, len(batch), batch.opened_in, map(_name_of, batch.receipts))
        if tell and not isinstance(outcome, Delivered | Kept) and (self._keeps or self.hooks.wants_outcomes):
            self._tell_undelivered(batch, outcome)
        # Whoever's call has ended these events, they are mostly those of others.
        detached(self._announce, outcome, len(batch), names)

    def drop(self, envelope: bytes, receipt: Receipt, reason: DropReason, *, tell: bool = True) -> None:
        """Drop an event that was never in the buffer; `tell` of it, unless the caller is told."""
        self.end(envelope, receipt, Dropped(reason=reason), tell=tell)

    def end(self, envelope: bytes, receipt: Receipt, outcome: Outcome, *, tell: bool = True) -> None:
        """Give an event that was never in the buffer its outcome."""
        batch = Batch(0.0, 0, None)
        batch.envelopes, batch.receipts, batch.opened_in = [envelope], [receipt], []
        self.close_batch(batch, outcome, tell=tell)

    def close(self, outcome: Outcome, count: int, opened_in: Sequence[int], names: Iterable[str]) -> None:
        """Count events as settled, and log the first of each kind of failure.

        Args:
            outcome: what became of them.
            count: how many they are.
            opened_in: the generations of the batches that they were in.
            names: their names; read only if they are dropped, or if there is an observer.
        """
        self._announce(outcome, count, self._count(outcome, count, opened_in, names))

    def _count(self, outcome: Outcome, count: int, opened_in: Sequence[int], names: Iterable[str]) -> Iterable[str]:
        """Count events as settled, here and in the flushes that wait for them; return their names, to be read again."""
        match outcome:
            case Delivered():
                self._delivered += count
            case Rejected():
                self._rejected += count
            case Abandoned():
                self._abandoned += count
            case Dropped(reason=reason):
                self._dropped += count
                names = tuple(names)
                by_name = self._dropped_by.setdefault(reason, {})
                for name in names:
                    by_name[name] = by_name.get(name, 0) + 1
            case Kept():
                self._kept += count
        if opened_in:
            for flush in self._flushes:
                flush.count_down(opened_in)
        return names

    def _announce(self, outcome: Outcome, count: int, names: Iterable[str]) -> None:
        """Hand settled events to the observer and the log: foreign code, which finds all counters right."""
        if self._watch is not None:
            self._watch.settled(names, outcome)
        # Delivered and kept events need no record, and those that the user's own hook drops are no news.
        match outcome:
            case Delivered() | Kept() | Dropped(reason="before_send"):
                return
            case Rejected(status=status):
                key: Hashable = ("rejected", status)
            case Abandoned(reason=reason, status=status):
                key = ("abandoned", reason, status)
            case Dropped(reason=reason):
                key = ("dropped", reason)
        if not self.quiet and key not in self._told:
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
            self._log(level, f"{message} (logged once; stats() counts on)", *args)

    def _log(self, level: int, message: str, *args: object) -> None:
        """Log a record; count what the application's log handlers and filters raise."""
        if not write_log(logger, level, message, *args):
            self._hook_errors += 1

    def stats(self, buffer: EventBuffer, *, waiting: int, state: State) -> Stats:
        """Return a snapshot of the books and of the buffer."""
        return Stats(
            tracked=self.tracked,
            delivered=self._delivered,
            rejected=self._rejected,
            abandoned=self._abandoned,
            dropped=self._dropped,
            pending=buffer.events,
            pending_bytes=buffer.bytes,
            in_flight=self._in_flight,
            oldest_age=buffer.oldest_age(),
            waiting=waiting,
            requests=self._requested,
            requests_by_status=dict(self._requests),
            retries=self._retries,
            limiter_wait=self._limiter_wait,
            hook_errors=self._hook_errors,
            hook_missed=self.hooks.missed,
            state=state,
            dropped_by={reason: dict(names) for reason, names in list(self._dropped_by.items())},
            splits=self._splits,
            kept=self._kept,
        )

    def _tell_undelivered(self, batch: Batch, outcome: Undelivered) -> None:
        events = [
            UndeliveredEvent(event_name=receipt.event_name, envelope=envelope, outcome=outcome)
            for envelope, receipt in batch
        ]
        if self._keeps:
            self.undelivered += events
        if self.hooks.wants_outcomes:
            missed = self.hooks.missed
            self.hooks.tell_outcomes(events)
            if missed != self.hooks.missed:
                self.tell_once(("missed",), logging.ERROR, "on_outcome is too slow and misses events")

    def tell_state(self, change: StateChange) -> None:
        """Tell of a change of state, once: in the log and to the hook."""
        level = logging.ERROR if change.state == "halted" else logging.WARNING
        told = f"HTTP {change.status}" if change.status is not None else change.failure or ""
        if change.advice in told:
            # What halts sending without a status says itself what to do.
            told = told.partition(":")[0]
        self.hooks.tell_state(change)
        if change.state == "sending":
            self._log(level, "sending again, after %.1f s %s", change.lasted, change.previous)
        else:
            self._log(level, "sending is %s: %s (%s)", change.state, change.advice, told)

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count what a hook raised, and tell of the first time."""
        self._hook_errors += 1
        self.tell_once(
            ("hook", name), logging.ERROR, "%s raised %s; it goes on being called", name, type(error).__name__
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
