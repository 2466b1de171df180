"""The pump: a task that takes a batch from the buffer whenever a request may be made, and starts to send the batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.flight import Flight
from retailrocket_async._delivery.realtime import SCARCE_VISITORS
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import ends_task, ensure_stack

if TYPE_CHECKING:
    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.gate import SendGate, SendSlot
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.realtime import Realtime
    from retailrocket_async._delivery.runner import Runner
    from retailrocket_async._delivery.waiting_callers import WaitingCallers
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._runtime.wakeup import Wakeup

_LIMITER_RETRY: Final = 1.0
"""Seconds to wait after the limiter raised an error, before the next permit is requested."""


class Pump:
    """Runs a task that takes batches from the buffer while the buffer holds events. An idle client has no task.

    A batch that waits for its retry counts as in flight. The number of batches in flight is bounded, so in an outage
    all further events stay in the buffer.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the events.
        callers: wait for space in the buffer.
        in_flight: counts the batches in flight, and gets the new flights.
        expiry: drops events that are too old.
        gate: grants the right to make each request.
        runner: sends the flights.
        wakeup: wakes the pump when a batch may be due sooner than expected.
        max_in_flight: largest number of batches in flight.
        realtime: decides whether events are sent one by one; None if all events are sent in batches.

    Attributes:
        idle: whether the pump must be started before it takes the next batch. Some programs cancel every task when they
            shut down, so the pump may end while the buffer holds events.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        buffer: EventBuffer,
        callers: WaitingCallers,
        *,
        in_flight: InFlight,
        expiry: Expiry,
        gate: SendGate,
        runner: Runner,
        wakeup: Wakeup,
        max_in_flight: int,
        realtime: Realtime | None,
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._callers = callers
        self._in_flight = in_flight
        self._expiry = expiry
        self._gate = gate
        self._runner = runner
        self._wakeup = wakeup
        self._max_in_flight = max_in_flight
        self._realtime = realtime
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.idle = True

    def kick(self) -> None:
        """Make the pump check the buffer; start the pump if it does not run."""
        if self._stopped:
            # A flush may begin while a close settles the leftover events; no batch must be sent then.
            return
        if self._task is None or self._task.done():
            ensure_stack()
            self._choose_form()
            self._task = self._affinity.create_task(self._run())
            self.idle = False
            detached(self._task.add_done_callback, self._ended)
        else:
            self._wakeup.set()

    def stop(self) -> None:
        """Take no further batch."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            self.idle = True

    async def _run(self) -> None:
        # Under an eager task factory this code runs before `_task` is set; without this pause, a second task would be
        # started.
        if asyncio.current_task() is not self._task:
            await asyncio.sleep(0)
        while self._buffer.events or self._callers.any:
            self._callers.admit()
            self._expiry.arrived()
            if not self._expiry.expire():
                await asyncio.sleep(0)
                continue
            self._choose_form()
            due_in = self._buffer.due_in() if self._in_flight.batches < self._max_in_flight else None
            if due_in is None or due_in > 0:
                await self._wakeup.wait(None if due_in is None else self._affinity.now() + due_in)
                continue
            try:
                slot = await self._gate.next_slot()
            except BaseException as error:  # a user's limiter may raise anything; without a permit nothing may leave
                if ends_task(error):
                    raise
                self._gate.limiter_failed(error)
                await asyncio.sleep(_LIMITER_RETRY)
                continue
            self._take(slot)

    def _take(self, slot: SendSlot) -> None:
        """Take the next batch from the buffer and launch its flight; `slot` is the right to make its request.

        The batch is taken after the permit was granted, so that the batch could grow in the meantime.
        """
        all_expired = self._expiry.expire()
        self._choose_form()
        batch = self._buffer.take() if all_expired else None
        if batch is None:
            slot.end()
            return
        flight = Flight.of_batch(batch, slot, self._affinity.now())
        self._in_flight.enter(flight)
        self._expiry.arrived()
        self._in_flight.launch(flight, self._runner.run(flight))
        self._callers.admit()

    def _choose_form(self) -> None:
        """Let the buffer return single events or batches, depending on whether permits are scarce."""
        if self._realtime is not None:
            buffer = self._buffer
            buffer.singles = self._realtime.look(
                self._affinity.now(), waited=buffer.overdue(), visitors=buffer.ready_visitors(SCARCE_VISITORS)
            )
