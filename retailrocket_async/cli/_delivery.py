"""Sends inputs: reads the inputs, tracks the events, and closes the client properly, also after a signal.

::

    Reader --chunks--> Lines --events--> client.track --> ... --> on_outcome (undelivered) --> Rejects
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from retailrocket_async import ClientClosedError, Codec, EventValidationError, Stats
from retailrocket_async.cli._explain import explain, is_hopeless
from retailrocket_async.cli._lines import BadLine, events_of
from retailrocket_async.cli._reading import Reader
from retailrocket_async.cli._signals import ending_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from retailrocket_async import AsyncTrackingClient, Event, StateChange, UndeliveredEvent
    from retailrocket_async.cli._lines import Lines
    from retailrocket_async.cli._reading import Source
    from retailrocket_async.cli._rejects import Rejects
    from retailrocket_async.cli._terminal import Meter

_LISTED = 20
"""Largest number of bad lines that are printed. Further bad lines are only counted; ``--dry-run`` prints all."""

_YIELD_EVERY = 200
"""After this many bad lines, other tasks of the event loop can run. At good lines, `track` lets those tasks run."""

_REFRESH = 0.1
"""Seconds between two updates of the progress bar."""


@attrs.define
class Result:
    """The result of sending the inputs.

    Attributes:
        events: the number of events that the client accepted, one for each good line.
        bad: the number of lines that are not an event.
        unreadable: the number of inputs that could not be read completely.
        stopped_at: the last line read, as ``FILE:LINE``, if reading stopped early; None if everything was read.
        interrupted_by: the number of the signal that interrupted the command; None if no signal interrupted the
            command.
        hopeless: whether the command stopped by itself, because no event was delivered and further attempts would fail
            for the same reason.
        reasons: the number of undelivered events for each reason.
        maybe_recorded: the number of undelivered events that the API may have recorded nevertheless.
        stats: the client's final counters.
        elapsed: seconds that the command took.
    """

    events: int = 0
    bad: int = 0
    unreadable: int = 0
    stopped_at: str | None = None
    interrupted_by: int | None = None
    hopeless: bool = False
    reasons: Counter[str] = attrs.field(factory=Counter[str])
    maybe_recorded: int = 0
    stats: Stats = attrs.field(factory=Stats)
    elapsed: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether all inputs were read, every line was an event, and every event was delivered."""
        return self.complete and not self.stopped_at

    @property
    def complete(self) -> bool:
        """Whether every line that was read was an event, and every event was delivered."""
        return not (self.bad or self.unreadable) and self.stats.delivered == self.events


class Delivery:
    """Sends the events of `sources` through a client.

    Args:
        sources: the inputs, in order.
        lines_of: creates the parser for an input's lines.
        rejects: writes bad lines and undelivered events to the file of rejects.
        meter: draws the progress bar, and prints lines above the bar.
        drain: largest number of seconds for which, after an interruption, events that were already read are still
            delivered.
        first: the number of the first line to send.
    """

    def __init__(  # noqa: PLR0913 - keywords
        self,
        sources: Sequence[Source],
        *,
        lines_of: Callable[[Source], Lines],
        rejects: Rejects,
        meter: Meter,
        drain: float,
        first: int = 1,
    ) -> None:
        self._sources = sources
        self._lines_of = lines_of
        self._rejects = rejects
        self._meter = meter
        self._drain = drain
        self._first = first
        self._reader = Reader(sources)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._outcomes_reported = asyncio.Event()
        self._encode = Codec().encode
        self._bytes = 0
        self._client: AsyncTrackingClient
        self.result = Result()

    async def run(self, client_of: Callable[..., AsyncTrackingClient]) -> Result:
        """Send everything, close the client, and return the result.

        The first SIGINT or SIGTERM stops reading; the events read before are delivered for up to `drain` seconds. The
        second signal stops the delivery immediately. In both cases every event that was read gets an outcome.

        Args:
            client_of: creates the client; called with the keyword arguments `on_outcome` and `on_state_change`.
        """
        client = self._client = client_of(on_outcome=self._on_outcome, on_state_change=self._on_state_change)
        begun = time.monotonic()
        feeding = asyncio.create_task(self._feed())
        drawing = asyncio.create_task(self._draw(begun))
        with ending_signals(self._interrupt):
            await _first_of(feeding, self._stop.wait())
            self._reader.stop()
            closing = asyncio.create_task(client.aclose(self._drain))
            await _first_of(closing, self._hurry.wait())
            # If `aclose` is cancelled, every event gets an outcome immediately. The next `aclose` returns the report.
            closing.cancel()
            report = await client.aclose(0)
        drawing.cancel()
        await asyncio.wait({feeding, closing, drawing})
        feeding.result()
        stats = report.stats
        # A cancelled `aclose` does not wait for `on_outcome`, so wait here until all undelivered events are written to
        # the file of rejects.
        while self.result.reasons.total() < stats.rejected + stats.abandoned + stats.dropped:
            self._outcomes_reported.clear()
            await self._outcomes_reported.wait()
        self.result.stats = report.stats
        self.result.elapsed = time.monotonic() - begun
        return self.result

    async def _feed(self) -> None:
        client, result, stored = self._client, self.result, 0
        lines: Lines | None = None
        place: str | None = None
        left = len(self._sources)
        try:
            async for chunk in self._reader.chunks():
                lines = lines or self._lines_of(chunk.source)
                for found in events_of(lines, chunk):
                    if lines.number < self._first and not (isinstance(found, BadLine) and found.ends_input):
                        continue
                    if isinstance(found, BadLine):
                        self._reject(found)
                        if not result.bad % _YIELD_EVERY:
                            await asyncio.sleep(0)
                    else:
                        await self._track(found, lines)
                self._bytes = stored + chunk.position
                place = f"{chunk.source.name}:{lines.number}"
                if not chunk.data:
                    stored, lines, left = self._bytes, None, left - 1
            if left:
                result.stopped_at = place or "the very beginning"
            else:
                await client.flush()
        except ClientClosedError:
            # The client was closed while `track` waited for space in the buffer: this line's event is not accepted.
            result.stopped_at = f"{lines.source}:{lines.number - 1}" if lines is not None else place

    async def _track(self, event: Event, lines: Lines) -> None:
        """Track the event of the line that `lines` has just parsed; reject the line if the client refuses the event."""
        try:
            await self._client.track(event)
        except EventValidationError as error:
            self._reject(BadLine(lines.source, lines.number, str(error), self._encode(event) + b"\n"))
        else:
            self.result.events += 1

    async def _on_outcome(self, undelivered: Sequence[UndeliveredEvent]) -> None:
        """Count undelivered events by reason, and write them to the rejects; stop if all further events would fail."""
        for event in undelivered:
            self.result.reasons[explain(event.outcome)] += 1
            self.result.maybe_recorded += event.outcome.maybe_recorded
        self._outcomes_reported.set()
        self._rejects.add_undelivered(event.envelope for event in undelivered)
        if any(is_hopeless(event.outcome) for event in undelivered):
            self._give_up()

    async def _on_state_change(self, change: StateChange) -> None:
        if change.state == "halted":
            self._give_up()

    def _give_up(self) -> None:
        # If no event was delivered yet, stop: the whole input can be sent again after the correction. If some events
        # were delivered, go on, so that the file of rejects contains all events that have to be sent again.
        if not self._client.stats().delivered and not self._stop.is_set():
            self.result.hopeless = True
            self._stop.set()

    def _reject(self, bad: BadLine) -> None:
        if bad.ends_input:
            self.result.unreadable += 1
        else:
            self.result.bad += 1
        self._rejects.add_bad(bad)
        count = self.result.bad + self.result.unreadable
        if count <= _LISTED or bad.ends_input:
            self._meter.print_err(f"bad line {bad}")
        elif count == _LISTED + 1:
            self._meter.print_err("... and more bad lines: --dry-run lists them all")

    def _interrupt(self, number: int) -> None:
        if self.result.interrupted_by is None:
            self.result.interrupted_by = number
            self._meter.print_err(
                f"interrupted: delivering what was read, for at most {self._drain:g} s; interrupt again to stop now"
            )
            self._stop.set()
        else:
            self._hurry.set()

    async def _draw(self, begun: float) -> None:
        while True:
            stats = self._client.stats()
            settled = stats.tracked - stats.pending - stats.in_flight
            # The bar shows the bytes whose events have an outcome, estimated from the number of these events.
            done = self._bytes * settled / max(1, stats.tracked)
            self._meter.show(done, settled, time.monotonic() - begun)
            await asyncio.sleep(_REFRESH)


async def _first_of(task: asyncio.Task[object], event: Coroutine[object, object, object]) -> None:
    """Wait until the task or the coroutine has ended, whichever is first. The task is not cancelled."""
    waiting = asyncio.create_task(event)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
