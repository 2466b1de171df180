"""The table of all flights: the batches and direct sends that have left the buffer and have no outcome yet.

A flight is ended only by a call of this table: by the runner after the last attempt, by the expiry after a limit, by a
close, or by a cancelled caller. So the number of events in flight, the visitors that wait for a flight and the receipts
always change in one step.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Literal

from retailrocket_async._delivery.flight import FlightState
from retailrocket_async._outcome import Dropped
from retailrocket_async._runtime.context import detached

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.waiting_callers import WaitingCallers
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._queue.taken_batch import TakenBatch
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._runtime.wakeup import Wakeup

_CUT_OFF_LOG_DELAY: Final = 1.0
"""Seconds between the cancellation of tasks by other code and the log record about the events of these tasks. If the
loop ends earlier, the record about the end of the loop includes these events."""


class InFlight:
    """Holds the flights (batches and direct sends), counts their events, and settles the events.

    Args:
        affinity: the loop that the client belongs to.
        buffer: makes a visitor's next events ready when the visitor's events in flight are settled.
        ledger: counts outcomes and settles receipts.
        callers: wait for space in the buffer; some of them may be admitted when a flight is settled.
        wakeup: wakes the pump when a flight is settled.

    Attributes:
        events: number of events in flight.
        batches: number of batches in flight, including batches that wait for a retry.
        cut_off: number of events that were lost because other code cancelled the tasks of their flights, and that are
            not logged yet.
        logs_losses: whether such events are logged.
    """

    def __init__(
        self, affinity: LoopAffinity, buffer: EventBuffer, ledger: Ledger, callers: WaitingCallers, wakeup: Wakeup
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._callers = callers
        self._wakeup = wakeup
        self._tasks: dict[Flight, asyncio.Task[None] | None] = {}
        self.events = self.batches = self.cut_off = 0
        self.logs_losses = True

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._tasks))

    # --- flights that begin -------------------------------------------------------------------------------------------

    def enter(self, flight: Flight) -> None:
        """Add a flight; the events of the flight count as in flight from now on."""
        self.events += flight.count
        self.batches += flight.whole is not None
        self._tasks[flight] = None

    def launch(self, flight: Flight, work: Coroutine[Any, Any, None]) -> None:
        """Run the work of a flight in a task.

        Args:
            flight: a flight that was added by `enter`.
            work: sends the flight until all its events have their outcome.
        """
        task = self._affinity.create_task(work)
        # Under an eager task factory the flight may be settled before `create_task` returns.
        if flight in self._tasks:
            self._tasks[flight] = task
        detached(task.add_done_callback, functools.partial(self._task_ended, flight))

    def _task_ended(self, flight: Flight, _: asyncio.Task[None]) -> None:
        # Our own code settles a flight before it cancels the task. If the flight has no outcome here, other code has
        # cancelled the task, for example a loop that shuts down while the client is open. The task itself cannot settle
        # the flight, because a task may be cancelled before it starts.
        if flight.outcome is not None:
            return
        if self.logs_losses and self._affinity.loop is not None:
            # The record is written a second later. If the loop ends before that, the record about the end of the loop
            # includes these events, so that a single record counts all lost events.
            self._ledger.quiet = True
            self.cut_off += flight.count
            self._affinity.call_later(_CUT_OFF_LOG_DELAY, self._log_cut_off)
        try:
            self.settle(flight, flight.give_up("cancelled", self._affinity.now()))
        finally:
            # `finally`, because Ctrl-C may be raised in an observer, and later records must still be logged.
            self._ledger.quiet = False

    def _log_cut_off(self) -> None:
        count, self.cut_off = self.cut_off, 0
        if count and self.logs_losses:
            message = "%d event(s): given up, cancelled: other code cancelled the tasks that sent them"
            self._ledger.log_once(("cancelled",), logging.ERROR, message, count)

    # --- flights that end ---------------------------------------------------------------------------------------------

    def settle(self, flight: Flight, outcome: Outcome) -> None:
        """Settle the events of a flight with `outcome`; do nothing if the flight already has an outcome."""
        if flight.outcome is not None:
            return
        flight.outcome = outcome
        flight.become(FlightState.SETTLED)
        self._tasks.pop(flight, None)
        if flight.slot is not None:
            flight.slot.end()
        self.events -= flight.count
        if flight.whole is None or flight.batch is None:
            self._settle_direct(flight, outcome)
        else:
            self._settle_batch(flight, flight.whole, flight.batch, outcome)
        self._callers.admit()

    def _settle_direct(self, flight: Flight, outcome: Outcome) -> None:
        # The observer is called in the context of the caller of `send`. The flight then drops this context.
        context, flight.context = flight.context or Context(), None
        try:
            context.run(self._ledger.close, outcome, flight.count, flight.opened_in, flight.names)
        finally:
            if flight.landed is not None and not flight.landed.done():
                flight.landed.set_result(outcome)
            if flight.hold is not None:
                self._buffer.end_hold(flight.hold)
            self._wakeup.set()

    def _settle_batch(self, flight: Flight, whole: TakenBatch, batch: Batch, outcome: Outcome) -> None:
        self.batches -= 1
        # A flush waits for whole batches, so only the last part gets the `opened_in` of the batch: the flush counts the
        # batch as settled when this part is settled.
        batch.opened_in = flight.opened_in
        interrupt: BaseException | None = None
        for part, its_outcome in [(batch, outcome), *flight.waiting_parts(outcome)]:
            if part is not batch:
                self.events -= len(part)
            try:
                self._ledger.close_batch(part, its_outcome)
            except BaseException as error:  # noqa: BLE001 - Ctrl-C in an observer; the other parts get their outcomes, too
                interrupt = error
        self._buffer.release(whole)
        self._wakeup.set()
        if interrupt is not None:
            raise interrupt

    def settle_part(self, flight: Flight, part: Batch, outcome: Outcome) -> None:
        """Settle the events of `part`; the other events of the flight are still to be sent.

        If all events of a visitor are settled now, this visitor's next events need not wait for the rest of the flight.
        """
        if flight.outcome is not None or flight.whole is None:
            return
        self.events -= len(part)
        try:
            self._ledger.close_batch(part, outcome)
        finally:
            if self._buffer.release(flight.whole, held=flight.visitors()):
                self._wakeup.set()

    def end(self, flight: Flight, outcome: Outcome) -> None:
        """Settle a flight, and cancel its task unless this call runs in that task."""
        task = self._tasks.get(flight)
        try:
            self.settle(flight, outcome)
        finally:
            # `finally`, because Ctrl-C may be raised in an observer.
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    def cut_short(self, flight: Flight, reason: Literal["cancelled", "closed"]) -> None:
        """Settle a flight as cancelled or closed at once, even if its task still waits for something."""
        if reason == "closed" and not flight.attempts:
            self.end(flight, Dropped(reason="closed"))
        else:
            self.end(flight, flight.give_up(reason, self._affinity.now()))
